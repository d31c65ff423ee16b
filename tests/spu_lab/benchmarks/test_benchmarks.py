import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from spu_lab import catalogue
from spu_lab.benchmarks import capture, dense_systems, endurance, kept, networks, overlap, scale, solve, step
from spu_lab.benchmarks.timing import Subjects, alone, medians
from spu_lab.commands.bench import PACKAGE, run_benchmark
from spu_lab.performance import write_page
from spu_lab.performance.page import NoResults, number
from tests.spu_lab.benchmarks.conftest import noise_task

SMALLEST: dict[str, Callable[[], dict[str, Any]]] = {
    "capture": partial(
        capture.run,
        batch=4,
        rounds=1,
        task=noise_task,
        batches=dict.fromkeys(networks.NETWORKS, 2),
        points=(9, 4),
    ),
    "endurance": partial(endurance.run, steps=120, window=40),
    "kept": partial(kept.run, batch=4, rounds=1, task=noise_task),
    "overlap": partial(
        overlap.run,
        rounds=1,
        steps=2,
        readings=10,
        cases={suffix: ("reference", 2, kind) for suffix, (_, _, kind) in overlap.CASES.items()},
        task=noise_task,
    ),
    "scale": partial(scale.run, (600, 2400, 9600), (8, 16), few_rows=4, some_parameters=600, repeats=1),
    "solve": partial(solve.run, (16, 24, 32), batch=4, rounds=1, euler_steps=2, task=noise_task),
    "step": partial(step.run, rounds=1, batches=dict.fromkeys(networks.NETWORKS, 2), task=noise_task),
}
"""Each benchmark at a size that takes seconds."""


# What the compared packages do with torch and jax is theirs.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.timeout(900)  # 17 s at most where nothing else runs
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("solve", "step", "overlap") else name for name in SMALLEST],
)
def test_a_benchmark_gives_the_ratios_it_declares_and_they_can_be_shown(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = catalogue.find(PACKAGE, name)
    monkeypatch.setattr(module, "run", SMALLEST[name])
    content = run_benchmark(name, tmp_path / f"{name}.json")
    assert set(content["ratios"]) == set(module.RATIOS)
    for ratio, value in content["ratios"].items():  # on a busy machine a reading may come too late to be taken
        assert math.isfinite(value) or ("lateness" in ratio and value == math.inf), ratio
    write_page(tmp_path, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    for ratio, value in content["ratios"].items():
        assert f"| `{ratio}` | {number(value)} |" in text
        assert f"| {module.RATIOS[ratio]} |" in text
    if name != "endurance":  # which has nothing to show in addition to its ratios
        assert (tmp_path / "images" / f"performance-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_every_benchmark_describes_itself_and_its_ratios() -> None:
    for name in catalogue.names(PACKAGE):
        benchmark = catalogue.find(PACKAGE, name)
        assert catalogue.summary(PACKAGE, name).endswith("."), name
        assert benchmark.RATIOS, name
        assert all(benchmark.RATIOS.values()), name
        assert set(getattr(benchmark, "TARGETS", {})) <= set(benchmark.RATIOS), name


def result(folder: Path, ratios: Mapping[str, float], **changes: Any) -> None:
    machine = {"processor": "P", "cores": 2, "torch_threads": 2, "system": "S", "load_average": 0.25}
    content = {
        "name": "capture",
        "ratios": ratios,
        "results": {},
        "command": "tngd bench capture",
        "seconds": 9.0,
        "commit": None,
        "date": "D",
        "versions": {"torch": "2"},
        "machine": machine,
    }
    (folder / "capture.json").write_text(json.dumps(content | changes))


def test_the_page_keeps_shortfalls_in_sight(tmp_path: Path) -> None:
    result(tmp_path, {"capture_exact_speedup_vs_jacrev": 40.0, "capture_mc_vs_plain_step": 1.5})
    assert write_page(tmp_path, tmp_path / "docs" / "performance.md") == ["capture_exact_speedup_vs_jacrev"]
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "1 of 2 measured targets are met" in text
    assert "| `capture_exact_speedup_vs_jacrev` | 40.0 | ≥ 80 | **missed by 2.00 ×** |" in text
    assert "| `capture_mc_vs_plain_step` | 1.50 | ≤ 2 | met |" in text
    assert "Not measured in these files: " in text
    for said in ("tngd bench capture", "2 cores", "torch 2", "0.25 processes"):
        assert said in text


def test_a_figure_that_is_no_number_is_a_shortfall(tmp_path: Path) -> None:
    result(tmp_path, {"capture_mc_vs_plain_step": math.nan})
    assert write_page(tmp_path, tmp_path / "page.md") == ["capture_mc_vs_plain_step"]


def test_results_of_another_version_are_to_be_measured_again(tmp_path: Path) -> None:
    result(tmp_path, {}, name="solve", results={"seconds": {}, "settings": {"sizes": [256]}})
    with pytest.raises(
        NoResults, match=r"solve are of another version, without .*tngd bench solve --json .*solve\.json"
    ):
        write_page(tmp_path, tmp_path / "page.md")


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoResults, match=r"tngd bench NAME --json .*/NAME\.json"):
        write_page(tmp_path, tmp_path / "page.md")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(NoResults, match=r"other\.json is not a result"):
        write_page(tmp_path, tmp_path / "page.md")


@pytest.mark.parametrize(
    ("value", "shown"), [(1234.5, "1.23e+03"), (99.97, "100.0"), (0.0123, "0.0123"), (1e-6, "1e-06"), (0.0, "0")]
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def two() -> Subjects:
    return {"fast": int, "slow": partial(sum, range(200_000))}


def test_sides_run_in_processes_of_their_own() -> None:
    seconds = medians({"a": two}, rounds=1, repeats=3)
    assert seconds.keys() == {"a_fast", "a_slow"}
    assert 0.0 < seconds["a_fast"] < seconds["a_slow"]
    assert alone(divmod, 7, 2) == (3, 1)


def test_draws_from_another_law_are_noticed() -> None:
    n = 16
    assert dense_systems.check_emulator(n) == pytest.approx(1.0, abs=1.1)
    matrix, drive = dense_systems.dense_system(n)
    solution: Tensor = (matrix + dense_systems.DAMPING * matrix.new_ones(n).diag()).inverse() @ drive
    with pytest.raises(ArithmeticError, match="not from the law"):
        dense_systems.check_law(n, [solution + 1.0])
