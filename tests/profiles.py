"""Number and choice of hypothesis' examples: the same ones every time, or, to explore, many more at random."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, register_random, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

USUAL = 100

# On a busy machine an example takes long, and drawing one as well: that says nothing about the code.
_WITHOUT_DEADLINE = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", _WITHOUT_DEADLINE, max_examples=USUAL, derandomize=True, database=None)
settings.register_profile("explore", _WITHOUT_DEADLINE, max_examples=10 * USUAL)


def examples(usual: int, *, exploring: int | None = None) -> int:
    """Return the number of examples of a test that usually tries so many; to explore, `exploring` or ten times as many.

    Where a hundred would take too long, or more cost nothing: ``@settings(max_examples=examples(40))``.
    """
    if exploring is not None and not settings().derandomize:
        return exploring
    return usual * settings().max_examples // USUAL


def without_constants_of_the_source() -> None:
    """Let no example depend on which modules are loaded.

    Hypothesis also draws constants that stand in the source of the modules loaded by then, and which those are depends
    on the tests that ran before in this process. There is no setting for it.
    """
    assert callable(providers._get_local_constants)  # noqa: SLF001
    providers._get_local_constants = Constants  # none at all  # noqa: SLF001


class _Torch:
    """Torch's global generator, for hypothesis to seed before every example (`st.random_module` draws the seed)."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> Any:
        return torch.get_rng_state()

    def setstate(self, state: Any) -> None:
        torch.set_rng_state(state)


TORCH = _Torch()  # hypothesis only refers to it weakly
register_random(TORCH)
