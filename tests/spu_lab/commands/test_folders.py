"""A folder holds one run, and says how it ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spu_lab.result_folder import FolderInUse, check_free, clear, interrupted_run, new_results, results_in
from tests.command_line import tngd, words

RUN = '{"status": "finished"}'


@pytest.mark.parametrize("command", [["train", "mnist"], ["demo"], ["reproduce", "noise"]], ids=" ".join)
def test_the_folder_of_another_run_is_refused_and_left_as_it_is(command: list[str], tmp_path: Path) -> None:
    for name in ("run.json", "steps.csv", "notes.txt"):
        (tmp_path / name).write_text(RUN)
    result = tngd(*command, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert words(result.stderr).startswith(f"FolderInUse: {tmp_path} holds a run already (run.json, steps.csv); name ")
    assert "--overwrite" in result.stderr
    assert {path.read_text() for path in tmp_path.iterdir()} == {RUN}


def test_where_a_run_can_be_gone_on_with_the_refusal_says_so(tmp_path: Path) -> None:
    for name in ("run.json", "checkpoint.pt"):
        (tmp_path / name).write_text('{"status": "interrupted"}')
    with pytest.raises(FolderInUse, match="; go on with it with --resume, name another folder"):
        check_free(tmp_path, "run", overwrite=False)


def test_overwriting_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    mine = {"notes.txt", "embeddings.md", "data.csv"}
    its = {"run.json", "run.png", "steps.csv", "events.jsonl", "events-1.jsonl", "checkpoint.pt", "run.json.new"}
    for name in (*mine, *its, "demo.json", "mnist.csv"):
        (tmp_path / name).write_text(RUN)
    with pytest.raises(FolderInUse, match="holds a run already"):
        check_free(tmp_path, "run", overwrite=False)
    check_free(tmp_path, "run", overwrite=True)
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == mine
    assert results_in(tmp_path) == []
    check_free(tmp_path, "run", overwrite=False)


@pytest.mark.parametrize("mine", ["noise.csv", "noise.md", "noise.json"])
def test_a_file_of_other_origin_is_neither_removed_nor_replaced(mine: str, tmp_path: Path) -> None:
    for name in (mine, "run.json", "steps.csv"):
        (tmp_path / name).write_text(RUN if name == "run.json" else '{"bits": 8}')
    for overwrite in (False, True):
        with pytest.raises(FolderInUse, match=rf"of no run \({mine}\); move them"):
            check_free(tmp_path, "noise", overwrite=overwrite)
    check_free(tmp_path, "run", overwrite=True)
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [mine]


def test_what_a_process_that_was_killed_left_half_written_is_in_nobody_s_way(tmp_path: Path) -> None:
    (tmp_path / "run.json.new").touch()
    check_free(tmp_path, "run", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json.new"]


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "interrupted"), (ValueError("no device"), "failed")]
)
def test_results_say_how_their_run_ended(error: BaseException, status: str, tmp_path: Path) -> None:
    def broken() -> None:
        with new_results(tmp_path, "demo"):
            assert json.loads((tmp_path / "demo.json").read_text())["status"] == "running"
            (tmp_path / "mnist.csv").touch()
            raise error

    with pytest.raises(type(error)):
        broken()
    content = json.loads((tmp_path / "demo.json").read_text())
    assert content["status"] == status
    assert content.get("reason", "") == str(error)
    left = f"{tmp_path} holds what there is of the run: demo.json, mnist.csv"
    assert interrupted_run(tmp_path) == (left if status == "interrupted" else "")
