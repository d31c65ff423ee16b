"""Noise: MNIST through devices of different κ₀, read at t = τ, the paper's Fig. 7, and whether κ₀ < 0.01 matters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from host_client.experiments.sweeps import Arm, Result, paired_p, sweep, write
from host_client.tasks.mnist import mnist
from host_client.tasks.task import Task

SEEDS = (0, 1, 2, 3, 4)
NOISES = (0.0, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
EPOCHS = 2
CLAIM = 0.01
"""Below this, says the paper, noise makes essentially no difference at t = τ."""


def run(out: Path, spu: str | None, console: Console) -> None:
    """Run all κ₀ and seeds.

    Args:
        out: folder for ``noise.csv``, ``.json``, ``.md`` and ``.png``.
        spu: not taken: each run has a device of its own.
        console: where to show it.

    Raises:
        ValueError: when a device is given.
        DataUnavailable, SpuError: when data or device is missing.
    """
    if spu is not None:
        raise ValueError("noise makes devices of its own, in this process; leave out --spu")
    study(out, mnist(), console, seeds=SEEDS, epochs=EPOCHS)


def study(
    out: Path, task: Task, console: Console, *, seeds: Sequence[int], epochs: int, steps: int | None = None
) -> list[Result]:
    """The experiment on a task, for so many epochs, or `steps` if given."""
    common = {"analog_time": 1.0, "epochs": epochs} | ({"steps": steps} if steps else {})
    arms = [Arm("κ₀ =", noise, {"noise": noise}) for noise in NOISES]
    results = sweep(task, arms, common, seeds, console)
    write(
        out,
        "noise",
        results,
        {"κ₀ =": results[0]},
        console,
        title="Noise of the device: MNIST with TNGD, read at t = τ",
        caption=f"Mean ± standard deviation over {len(seeds)} seeds. η = 0.01, λ = 0.01, t_d = 0, b = 64. "
        "p: paired t test against the device without noise.",
        labels={"κ₀ =": "noise κ₀"},
    )
    for line in verdict(results):
        console.print(line, highlight=False)
    (out / "noise.md").write_text((out / "noise.md").read_text() + "\n" + "\n".join(verdict(results)) + "\n")
    return results


def verdict(results: Sequence[Result]) -> list[str]:
    """What is seen of the paper's claim, in words, with numbers."""
    reference, small = results[0], [r for r in results[1:] if r.arm.value < CLAIM]
    worst = max((sum(d) / len(d) for r in small if (d := r.differences(reference))), default=float("nan"), key=abs)
    tests = [p for r in small if (p := paired_p(r.differences(reference))) == p]
    seen = any(p < 0.05 / len(tests) for p in tests)
    return [
        f"κ₀ < {CLAIM:g}: the largest mean difference of the test loss is {worst:+.4f}; "
        f"{'a difference is seen' if seen else 'no difference is seen'} at the 5 % level over {len(tests)} noises "
        f"(Bonferroni), with {len(reference.runs)} seeds."
    ]
