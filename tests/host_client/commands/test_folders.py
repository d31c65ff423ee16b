"""A folder holds one run, and says what became of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from host_client.result_folder import FolderInUse, check_free, clear, interrupted_run, new_results, results_in
from tests.host_client.commands.conftest import Run, words


@pytest.mark.parametrize("command", [["train", "mnist"], ["demo"], ["reproduce", "noise"]], ids=" ".join)
def test_the_folder_of_another_run_is_refused_and_left_as_it_is(tngd: Run, command: list[str], tmp_path: Path) -> None:
    for name in ("run.json", "steps.csv", "notes.txt"):
        (tmp_path / name).write_text("mine")
    result = tngd(*command, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert words(result.stderr).startswith(f"FolderInUse: {tmp_path} holds a run already (run.json, steps.csv); name ")
    assert "--overwrite" in result.stderr
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


def test_overwriting_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    mine = {"notes.txt", "embeddings.md", "data.csv"}
    its = {"run.json", "run.png", "steps.csv", "events.jsonl", "events-1.jsonl", "checkpoint.pt", "run.json.new"}
    for name in (*mine, *its, "demo.json", "adam.csv"):
        (tmp_path / name).touch()
    with pytest.raises(FolderInUse):
        check_free(tmp_path, overwrite=False)
    check_free(tmp_path, overwrite=True)
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == mine
    assert results_in(tmp_path) == []
    check_free(tmp_path, overwrite=False)


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "interrupted"), (ValueError("no device"), "failed")]
)
def test_results_say_how_their_run_ended(error: BaseException, status: str, tmp_path: Path) -> None:
    def broken() -> None:
        with new_results(tmp_path, "demo"):
            assert json.loads((tmp_path / "demo.json").read_text())["status"] == "running"
            (tmp_path / "tngd.csv").touch()
            raise error

    with pytest.raises(type(error)):
        broken()
    content = json.loads((tmp_path / "demo.json").read_text())
    assert content["status"] == status
    assert content.get("reason", "") == str(error)
    left = f"{tmp_path} holds what there is of the run: demo.json, tngd.csv"
    assert interrupted_run(tmp_path) == (left if status == "interrupted" else "")
