"""The words of the demonstration follow from its runs."""

import pytest

from spu_lab.commands.demo import standing
from spu_lab.training.loop import Evaluation, Run
from spu_lab.training.settings import Settings


def ended(loss: float, accuracy: float) -> Run:
    return Run(Settings(), 10, 10, [], [Evaluation(9, "test", loss, accuracy)])


@pytest.mark.parametrize(
    ("tngd", "adam", "said"),
    [
        ((0.3, 0.91), (0.1, 0.96), "At the end Adam is ahead: test loss Adam 0.100, TNGD 0.300; "),
        ((0.1, 0.96), (0.3, 0.91), "At the end TNGD is ahead: test loss TNGD 0.100, Adam 0.300; "),
        ((0.3, 0.96), (0.1, 0.91), "At the end Adam is ahead in loss: test loss Adam 0.100, TNGD 0.300; "),
    ],
)
def test_whoever_is_ahead_is_named(tngd: tuple[float, float], adam: tuple[float, float], said: str) -> None:
    assert standing({"TNGD": ended(*tngd), "Adam": ended(*adam)}).startswith(said)
