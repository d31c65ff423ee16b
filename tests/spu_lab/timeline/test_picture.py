import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from host_client.record import Differentiated, RunRecord
from spu_lab.timeline import choose_window, draw, lay_out
from spu_lab.timeline.theme import THEMES, ThemeName
from tests.command_line import tngd
from tests.spu_lab.timeline.pipeline import FreeRunning, Stepped


def leave(run: FreeRunning | Stepped, folder: Path) -> Path:
    with RunRecord(folder, device={"driver": "simulation", "clock": "free", "rate_tau_per_s": 1000.0}) as record:
        for event in run.events():
            record.record(event)
    return folder


def has_colour(path: Path, colour: str) -> bool:
    pixels = np.asarray(imread(path))[..., :3]
    wanted = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return bool((np.abs(pixels - wanted).max(-1) < 0.01).any())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_picture_has_the_colours_of_its_programs_and_of_what_was_lost(theme: ThemeName, tmp_path: Path) -> None:
    timeline = lay_out(FreeRunning(upload=0.08, steps=12).record())
    draw(timeline, choose_window(timeline), tmp_path / "t.png", title="Steps", theme=theme)
    for colour in (THEMES[theme].ground, THEMES[theme].lane, THEMES[theme].lost, *THEMES[theme].programs[:2]):
        assert has_colour(tmp_path / "t.png", colour)


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    timeline = lay_out(Stepped().record())
    for name in ("a.svg", "b.svg"):
        draw(timeline, choose_window(timeline), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_picture_is_renamed_into_place(tmp_path: Path) -> None:
    (tmp_path / "before.png").write_bytes(b"of the run before")
    (tmp_path / "t.png").hardlink_to(tmp_path / "before.png")
    timeline = lay_out(Stepped().record())
    draw(timeline, choose_window(timeline), tmp_path / "t.png")
    assert has_colour(tmp_path / "t.png", "#ffffff")
    assert (tmp_path / "before.png").read_bytes() == b"of the run before"


def test_timeline_draws_a_run_and_writes_its_trace(tmp_path: Path) -> None:
    folder = leave(FreeRunning(lost_after=8, steps=16), tmp_path / "run")
    result = tngd("timeline", str(folder), "--trace", str(tmp_path / "t.json"), "--steps", "6:10")
    assert result.exit_code == 0, result.output
    assert "Steps 6 to 9" in result.output
    assert "ui.perfetto.dev" in result.output
    assert has_colour(folder / "timeline.png", "#ffffff")
    assert (tmp_path / "t.json").stat().st_size > 1000


def test_timeline_takes_a_run_without_a_device(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as record:
        for step in range(6):
            record.record(Differentiated(step, step + 0.0, step + 0.9))
    result = tngd("timeline", str(tmp_path), "--out", str(tmp_path / "t.svg"))
    assert result.exit_code == 0, result.output
    assert "without a device" in result.output
    assert (tmp_path / "t.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "90:95"], "it has 1 to 12"),
        (["--steps", "x"], "such as 40:44"),
        (["--from", "3", "--to", "2"], "nothing lies between 3 and 2 s"),
    ],
)
def test_what_cannot_be_shown_is_one_message(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = tngd("timeline", str(leave(FreeRunning(), tmp_path)), *arguments)
    assert result.exit_code == 1
    assert said in re.sub(r"\s+", " ", result.stderr)
    assert "Traceback" not in result.output


def test_a_folder_without_a_record_is_one_message(tmp_path: Path) -> None:
    result = tngd("timeline", str(tmp_path))
    assert result.exit_code == 1
    assert "tngd train" in result.stderr


def test_a_torn_record_is_drawn_with_a_note(tmp_path: Path) -> None:
    path = leave(FreeRunning(), tmp_path) / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    result = tngd("timeline", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "torn" in result.stderr


def test_another_kind_of_picture_is_refused(tmp_path: Path) -> None:
    result = tngd("timeline", str(tmp_path), "--out", "t.doc")
    assert result.exit_code == 2
    assert "must end in .png, .svg or .pdf" in re.sub(r"[\s│]+", " ", result.stderr)


def test_help_teaches_how_to_read_it() -> None:
    text = re.sub(r"[\s│╭╮╰╯─]+", " ", tngd("timeline", "--help").output)
    for said in (
        "--steps 40:44",
        "ui.perfetto.dev",
        "takes effect",
        "in seconds since the record began",
        "t_d",
        "light",
    ):
        assert said in text
