"""A study: panels of arms, over seeds, as CSV, JSON, a table with verdicts, and a plot."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar, Final, TypeAlias

from matplotlib.figure import Figure
from rich.console import Console

from spu_lab.provenance import provenance
from spu_lab.result_folder import write_json
from spu_lab.studies.paired import Paired
from spu_lab.studies.panels import panels_figure
from spu_lab.studies.sweeps import ArmResult, Panel, sweep
from spu_lab.studies.verdicts import Verdict, to_json, write_table
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.task import Task
from spu_lab.training.report import save_whole
from spu_lab.training.results import summary

Results: TypeAlias = Mapping[str, ArmResult]
"""By the labels of the arms."""

COLUMNS = ("device", "test loss", "accuracy", "difference (95 %)", "p")
"""Mean and standard deviation of the loss, and the mean accuracy; the difference of the loss by seed and the half width
of its confidence interval; p, see `Paired`."""


QUICK_STEPS: Final = 20
"""Iterations of a run of a miniature."""


class DeviceNotTaken(ValueError):
    """An experiment that makes its own devices was given one."""

    remedy: ClassVar[str] = "leave out --spu"


@dataclass(frozen=True)
class Study:
    """Description of what is varied, and how it is presented.

    Attributes:
        name: of the files.
        title: one line.
        caption: what a reader of the plot must know.
        panels: what is varied, each against its reference; a reference may be that of several panels.
        common: settings of all arms.
        seeds: of network, batches and device.
        judge: gives the claims with what has come out.
        task: makes what is trained.
        draw: draws the picture, with the arguments of `panels_figure`.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    common: Mapping[str, Any]
    seeds: Sequence[int]
    judge: Callable[[Sequence[Panel], Results], list[Verdict]]
    task: Callable[[], Task] = mnist
    draw: Callable[..., Figure] = panels_figure

    def reproduce(self, out: Path, spu: str | None, console: Console, *, quick: bool = False) -> None:
        """Run it on its own task.

        Args:
            out: folder for the results.
            spu: ``"inproc:"`` puts the devices into the processes of the runs; None gives each run a daemon.
            console: where to show it.
            quick: whether to run a miniature: a few steps with two seeds.

        Raises:
            DeviceNotTaken: when another device is given.
            DataUnavailable, DaemonFailed, SpuError: when data, daemon or device is missing.
        """
        if spu not in (None, "inproc:"):
            raise DeviceNotTaken(f"{self.name} makes devices of its own; leave out --spu")
        study = self.miniature() if quick else self
        study.run(out, study.task(), console, address=spu)

    def miniature(self) -> Study:
        """Return the same with one panel, its first and last arm, a few steps and two seeds."""
        panels = [replace(panel, arms=[panel.arms[0], panel.arms[-1]]) for panel in self.panels[:1]]
        return replace(
            self,
            panels=panels,
            common={**self.common, "steps": QUICK_STEPS},
            seeds=self.seeds[:2],
            caption=f"A miniature: {QUICK_STEPS} iterations. {self.caption}",
        )

    def run(self, out: Path, task: Task, console: Console, *, address: str | None = None) -> Results:
        """Run all arms and seeds on a task; write ``NAME.csv``, ``NAME-curves.csv``, ``.json``, ``.md`` and ``.png``.

        Raises:
            OSError: when the files cannot be written.
            DaemonFailed, SpuError: when a device cannot be opened or fails.
        """
        arms = {arm.label: arm for panel in self.panels for arm in (panel.reference, *panel.arms)}
        done = sweep(task, list(arms.values()), self.common, self.seeds, out, console, address=address)
        results = {result.arm.label: result for result in done}
        self._write_runs(out, done)
        verdicts = self.judge(self.panels, results)
        self._write_table(out / f"{self.name}.md", results, verdicts, console)
        caption = f"Median, and min to max, over {len(self.seeds)} seeds. {self.caption}"
        save_whole(self.draw(self.panels, results, title=self.title, caption=caption), out / f"{self.name}.png")
        content = {"status": "finished", **provenance(), **self._summary(task, results), "verdicts": to_json(verdicts)}
        write_json(out / f"{self.name}.json", content)
        console.print(f"CSV, JSON, table and plot: {out}", highlight=False)
        return results

    def _write_runs(self, out: Path, results: Sequence[ArmResult]) -> None:
        """Write how each run ended, and each batch's loss."""
        with (
            (out / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as ends,
            (out / f"{self.name}-curves.csv").open("w", newline="", encoding="utf-8") as curves,
        ):
            end, curve = csv.writer(ends), csv.writer(curves)
            end.writerow(("device", "value", "seed", "test_loss", "test_accuracy", "diverged"))
            curve.writerow(("device", "seed", "step", "loss"))
            for result in results:
                arm = result.arm
                for seed, run in zip(self.seeds, result.runs, strict=True):
                    test = run.final("test") if run is not None else None
                    final = (test.loss, test.accuracy) if test is not None else ("", "")
                    end.writerow((arm.label, arm.value, seed, *final, int(run is None)))
                    curve.writerows((arm.label, seed, step.step, step.loss) for step in (run.steps if run else ()))

    def _write_table(self, path: Path, results: Results, verdicts: Sequence[Verdict], console: Console) -> None:
        rows: dict[str, list[str]] = {}
        for panel in self.panels:
            for arm in (panel.reference, *panel.arms):
                rows.setdefault(arm.label, _row(results[arm.label], results[panel.reference.label]))
        write_table(path, COLUMNS, list(rows.values()), verdicts, console, title=self.title)

    def _summary(self, task: Task, results: Results) -> dict[str, Any]:
        return {
            "task": {"name": task.name, "train_size": len(task.train), "test_size": len(task.test)},
            "seeds": list(self.seeds),
            "common_settings": dict(self.common),
            "panels": [
                {
                    "varied": panel.varied,
                    "reference": panel.reference.label,
                    "arms": {
                        arm.label: asdict(paired)
                        if (paired := results[arm.label].against(results[panel.reference.label]))
                        else None
                        for arm in panel.arms
                    },
                }
                for panel in self.panels
            ],
            "arms": [
                {
                    "label": r.arm.label,
                    "value": r.arm.value,
                    "device": r.arm.device,
                    "runs": [summary(run) if run is not None else None for run in r.runs],
                }
                for r in results.values()
            ],
        }


def find_differences(
    panel: Panel, results: Results, selects: Callable[[float], bool] = lambda value: True
) -> dict[str, Paired]:
    """Return the arms, of those whose values are selected, that differ from their reference in the test loss.

    By label, with a paired t test at the 5 % level, divided by the number of arms (Bonferroni).
    """
    tests = _tests(panel, results, selects)
    return {label: test for label, test in tests.items() if test is not None and test.p < 0.05 / len(tests)}


def describe_differences(panel: Panel, results: Results, selects: Callable[[float], bool] = lambda value: True) -> str:
    """Describe in a sentence the differences that are found, and those that would have been."""
    tests, differ = _tests(panel, results, selects), find_differences(panel, results, selects)
    unseen = [test for label, test in tests.items() if test is not None and label not in differ]
    lost = [label for label in tests if not all(results[label].runs)]
    parts = []
    if differ:
        each = [f"{label} ({_difference(test)}, p = {test.p:.1g})" for label, test in differ.items()]
        parts.append("a difference is seen at " + ", ".join(each))
    if unseen:
        largest = max((test.mean for test in unseen), key=abs)
        limit = max(test.detectable for test in unseen)
        parts.append(
            f"{'elsewhere ' if differ else ''}no difference is seen (at most {largest:+.2g}; "
            f"{limit:.2g} would have been, in 80 % of such runs)"
        )
    if lost:
        parts.append("runs diverged at " + ", ".join(lost))
    return f"{panel.varied}: {'; '.join(parts)}."


def _tests(panel: Panel, results: Results, selects: Callable[[float], bool]) -> dict[str, Paired | None]:
    reference = results[panel.reference.label]
    return {arm.label: results[arm.label].against(reference) for arm in panel.arms if selects(arm.value)}


def _row(result: ArmResult, reference: ArmResult) -> list[str]:
    paired = result.against(reference) if result is not reference else None
    losses, accuracies = result.finals("loss"), result.finals("accuracy")
    spread = f" ± {stdev(losses):.2g}" if len(losses) > 1 else ""
    lost = len(result.runs) - len(losses)
    return [
        result.arm.label + (f" ({lost} of {len(result.runs)} diverged)" if lost else ""),
        f"{fmean(losses):.4g}{spread}" if losses else "–",
        f"{fmean(accuracies):.2%}" if losses else "–",
        "reference" if result is reference else _difference(paired) if paired else "–",
        f"{paired.p:.2g}" if paired else "–",
    ]


def _difference(test: Paired) -> str:
    """Mean and half width of its confidence interval."""
    return f"{test.mean:+.2g} ± {test.high - test.mean:.2g}"
