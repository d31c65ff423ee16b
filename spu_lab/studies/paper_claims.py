"""Claims of the paper, arXiv 2405.13817, in our words: what its abstract, its tables and its captions say."""

from __future__ import annotations

from typing import Final

PAPER_CLAIMS: Final = {
    "abstract: cost": "With the right hardware an iteration costs about what one of a first-order method costs.",
    "abstract: equivalence": "In a regime of its settings it is natural gradient descent; in Fig. 4a at t = 50 τ.",
    "abstract: loop": "The device evolves while the host computes the next gradient.",
    "abstract: classification": "It is better than digital first- and second-order methods on classification.",
    "abstract: language": "It is better than these on fine-tuning a language model.",
    "Table 1": "Time grows as b·d_z·N + t and memory as b·d_z·N + b²·d_z²; the others as stated.",
    "Fig. 1": "Uploads, analog evolution and measurements overlap with differentiation, each at times of its own.",
    "Fig. 2": "At d_z = 20 an iteration takes about 1/100 of that of NGD, NGD-CG and NGD-Woodbury.",
    "Fig. 3: start": "On MNIST its loss falls faster than Adam's at first, by iterations.",
    "Fig. 3: end": "There both end near 94 % test accuracy.",
    "Fig. 3: runtime": "There an iteration takes about twice the time of one of Adam.",
    "Fig. 4a": "With shorter analog times than these 50 τ it is slower.",
    "Fig. 4b": "A delay helps at t = 5 τ; with some delays it is better than exact natural gradient descent.",
    "Fig. 5a": "On question answering the order is TNGD-Adam, Adam, TNGD, best first.",
    "Fig. 5b": "There a longer t is better, of 0.1, 0.2 and 0.4 τ.",
    "Fig. 6": "A network of op-amp integrators follows the Ornstein–Uhlenbeck process.",
    "Fig. 7": "Noise below κ₀ = 0.01 makes essentially no difference at t = τ.",
}
"""By the name that verdicts refer to."""

TWICE: Final = (1.5, 2.5)
"""Ratios of times that are about 2."""
