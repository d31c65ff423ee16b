"""Colours and measures of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

ThemeName: TypeAlias = Literal["light", "dark"]
"""For a page with a light or a dark ground."""


@dataclass(frozen=True)
class Theme:
    """Colours.

    Attributes:
        ground: of the picture.
        lane: behind a lane's bars.
        ink: of what is read first.
        muted: of what is read last.
        neutral: bars that belong to no program.
        programs: a program's colour, and that of all that belongs to it, by its sequence in turn; distinguished by
            colour-blind readers.
        on_program: text on them.
        lost: of what did not come off.
        computing: an emulator's computing, which belongs to no device.
    """

    ground: str
    lane: str
    ink: str
    muted: str
    neutral: str
    programs: tuple[str, ...]
    on_program: str
    lost: str
    computing: str

    def of_program(self, program: tuple[int, int] | None) -> str:
        """Colour of what belongs to (epoch, sequence)."""
        return self.neutral if program is None else self.programs[program[1] % len(self.programs)]


THEMES: dict[ThemeName, Theme] = {
    "light": Theme(
        ground="#ffffff",
        lane="#f3f4f6",
        ink="#1f2937",
        muted="#6b7280",
        neutral="#cbd2dc",
        programs=("#0f766e", "#c2410c", "#1d4ed8", "#a21caf"),
        on_program="#ffffff",
        lost="#b91c1c",
        computing="#f6d365",
    ),
    "dark": Theme(
        ground="#0d1117",
        lane="#161b22",
        ink="#e6edf3",
        muted="#8b949e",
        neutral="#3d4551",
        programs=("#2dd4bf", "#fb923c", "#60a5fa", "#e879f9"),
        on_program="#0d1117",
        lost="#f87171",
        computing="#7a5f14",
    ),
}
