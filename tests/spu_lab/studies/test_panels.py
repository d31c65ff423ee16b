"""Pictures of studies: what is drawn, and that nothing is drawn where there is nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from spu_lab.experiments import embeddings, noise, precision
from spu_lab.studies.convergence import convergence_figure
from spu_lab.studies.panels import ARMS, CEILING, REFERENCE, panels_figure
from spu_lab.studies.study import Study
from spu_lab.studies.sweeps import Arm, ArmResult, Panel
from spu_lab.training.loop import Evaluation, Run, StepMetrics
from spu_lab.training.settings import Settings


def run(losses: Sequence[float]) -> Run:
    steps = [StepMetrics(step, 1, loss, 0.0, 0.0, 0.0) for step, loss in enumerate(losses, start=1)]
    return Run(Settings(), 10, 10, steps, [Evaluation(len(steps), "test", losses[-1], 0.5)])


def result(arm: Arm, *ends: float | None) -> ArmResult:
    return ArmResult(arm, tuple(None if end is None else run(np.geomspace(2.3, end, 40).tolist()) for end in ends))


PANEL = Panel("bits", Arm("ideal"), [Arm(f"{bits} bits", float(bits)) for bits in (3, 4, 6, 8)])


def figure(**ends: tuple[float | None, ...]) -> Figure:
    """One panel; the test losses of the seeds by the arm's number of bits, 0.5 and 0.6 where none are given."""
    results = {"ideal": result(PANEL.reference, 0.5, 0.55)}
    for arm in PANEL.arms:
        results[arm.label] = result(arm, *ends.get(f"bits{arm.value:g}", (0.5, 0.6)))
    return panels_figure([PANEL], results, title="T", caption="C")


def test_a_line_does_not_pass_over_what_diverged_or_lies_beyond() -> None:
    for ends in ((None, None), (50.0, 80.0)):
        _, right = figure(bits4=ends).axes
        joined = right.lines[0].get_ydata()
        assert [math.isnan(y) for y in joined] == [False, True, False, False]
    said = " ".join(text.get_text() for text in figure(bits4=(50.0, 80.0), bits8=(None, 0.5)).axes[1].texts)
    assert "▲ 65" in said
    assert "1 of 2\ndiverged" in said


def test_bands_and_bars_are_positive_however_far_the_seeds_lie_apart() -> None:
    left, right = figure(bits3=(1e-3, 9.0)).axes
    bands = [
        path.vertices[:, 1]
        for band in left.collections
        if isinstance(band, PolyCollection)
        for path in band.get_paths()
    ]
    assert len(bands) == 5
    assert min(band.min() for band in bands) > 0.0
    bars = [segment[:, 1] for bar in right.containers for part in bar.lines[2] for segment in part.get_segments()]
    assert min(bar.min() for bar in bars) == pytest.approx(1e-3)
    assert left.get_ylim()[0] > 0.0
    assert left.get_ylim()[1] <= CEILING


def test_the_reference_lies_on_top_in_a_style_of_its_own() -> None:
    left, right = figure().axes
    (curve,) = [line for line in left.lines if line.get_color() == REFERENCE]
    assert curve.get_zorder() > max(line.get_zorder() for line in left.lines if line is not curve)
    assert curve.is_dashed()
    assert not any(line.is_dashed() for line in left.lines if line is not curve)
    assert left.get_legend().get_texts()[0].get_text() == "ideal (reference)"
    assert REFERENCE in {line.get_color() for line in right.lines}


def seen_without(kind: str, colour: str) -> np.ndarray:
    """A colour as those see it who lack one kind of cones (Viénot, Brettel and Mollon 1999), as linear RGB."""
    lacking = {
        "red": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
        "green": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    }
    linear = np.array([(int(colour[place : place + 2], 16) / 255) ** 2.2 for place in (1, 3, 5)])
    return np.clip(np.array(lacking[kind]) @ linear, 0.0, 1.0) ** (1 / 2.2)


@pytest.mark.parametrize("kind", ["red", "green"])
def test_arms_are_distinguished_by_colour_blind_readers_and_by_their_markers(kind: str) -> None:
    colours = [seen_without(kind, colour) for colour in [REFERENCE, *(colour for colour, _ in ARMS)]]
    apart = [float(np.linalg.norm(a - b)) for place, a in enumerate(colours) for b in colours[:place]]
    assert min(apart) > 0.1
    assert len({marker for _, marker in ARMS}) == len(ARMS)
    for study in (noise.STUDY, precision.STUDY, embeddings.STUDY):
        assert max(len(panel.arms) for panel in study.panels) <= len(ARMS)


def converging(study: Study, **ends: tuple[float | None, ...]) -> Figure:
    """Draw a study; the test losses of the seeds by the label of the arm, near the reference's where none are given."""
    results = {}
    for panel in study.panels:
        results[panel.reference.label] = result(panel.reference, *ends.get(panel.reference.label, (0.5, 0.6)))
        for arm, off in zip(panel.arms, (0.1, 1e-3, 0.0), strict=True):
            results[arm.label] = result(arm, *ends.get(arm.label, (0.5 + off, 0.6 + off)))
    return convergence_figure(study.panels, results, title=study.title, caption=study.caption)


def test_devices_and_their_equivalents_share_rows_and_differences_of_zero_are_left_out() -> None:
    left, right = converging(embeddings.STUDY).axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names[0] == "direct, 2,698 cells\nvs NGD"
    assert len(names) == len(embeddings.STUDY.panels)
    drawn = [float(x) for line in right.lines for x in line.get_xdata()]
    assert len(drawn) == 2 * len(names)
    assert min(drawn) == pytest.approx(1e-3)
    assert [text.get_text() for text in left.figure.legends[0].get_texts()] == [
        "digital equivalent",
        "t = 20 τ",
        "t = 200 τ",
        "t = 2000 τ",
    ]


def test_devices_that_diverged_or_lie_beyond_are_marked_and_in_the_legend() -> None:
    first = embeddings.STUDY.panels[0]
    lost, beyond, apart = (arm.label for arm in first.arms)
    ends = {lost: (None, None), beyond: (50.0, 80.0), apart: (None, 0.5), first.reference.label: (None, 0.5)}
    left, _ = converging(embeddings.STUDY, **ends).axes
    assert [text.get_text() for text in left.texts] == ["2 of 2 diverged", "▶ 65", "1 of 2 diverged"]
    assert left.get_yticklabels()[0].get_text().endswith("(1 of 2 diverged)")
    assert left.get_xlim()[1] <= CEILING
    legend = {text.get_text() for text in left.figure.legends[0].get_texts()}
    assert legend == {"digital equivalent", "t = 20 τ", "t = 200 τ", "t = 2000 τ"}


def test_all_devices_of_a_study_may_diverge() -> None:
    labels = [arm.label for panel in embeddings.STUDY.panels for arm in (panel.reference, *panel.arms)]
    converging(embeddings.STUDY, **dict.fromkeys(labels, (None, None))).savefig(BytesIO())
