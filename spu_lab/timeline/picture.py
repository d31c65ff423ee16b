"""The timeline as a picture: lanes for host, link, emulator and SPU, and arrows for what travels between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as MplPath
from matplotlib.textpath import TextPath

from host_client.record import Read, Updated, Uploaded
from spu_lab.timeline.elements import Arrow, Bar, Lane, Timeline
from spu_lab.timeline.scale import Scale
from spu_lab.timeline.strips import BAR, PAD, ROW, stack
from spu_lab.timeline.theme import THEMES, Theme, ThemeName
from spu_lab.timeline.turns import Example, find_example
from spu_lab.timeline.window import Window
from spu_lab.training.report import in_tau, save_whole

FONT = "DejaVu Sans"
"""Comes with matplotlib, so that a picture is the same everywhere."""

WIDTH = 9.4
"""Of the picture in inches; text of 9 points is then readable where a page shows it 800 pixels wide."""

LEFT, RIGHT, TOP, BOTTOM = 1.22, 0.18, 0.66, 0.56
LINE = 0.17
"""Margins in inches; each line below the title takes one more `LINE`."""

THINNEST = 0.06
"""Inches that a bar is wide at least, so that it is seen and an arrow can point at it."""

SMALL, TEXT = 8.0, 9.0
"""Sizes of text in points."""

UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def draw(
    timeline: Timeline,
    window: Window,
    path: Path,
    *,
    title: str = "",
    subtitles: Sequence[str] = (),
    theme: ThemeName = "light",
) -> None:
    """Draw a window of a run; the file's ending says whether as PNG, SVG or PDF.

    Args:
        timeline: the run.
        window: what is shown of it.
        path: of the picture; its folder is made.
        title: one line above, in bold.
        subtitles: lines below it.
        theme: for a light or a dark page.

    Raises:
        OSError: when the file cannot be made.
        ValueError: for an ending that is no kind of picture.
    """
    # Text as paths looks the same everywhere; without date and with a fixed salt the same run gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "timeline", "font.family": FONT, "hatch.linewidth": 0.8}):
        figure = _Picture(timeline, window, THEMES[theme]).figure(title, [line for line in subtitles if line])
        save_whole(figure, path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None)


class _Picture:
    """Places in the window become inches from the left, lanes inches from the bottom."""

    def __init__(self, timeline: Timeline, window: Window, theme: Theme) -> None:
        self._timeline, self._window, self._theme = timeline, window, theme
        self._width = WIDTH - LEFT - RIGHT
        self._x = Scale(timeline, window, self._width)
        self._example = find_example(timeline, window)
        self._bars = [bar for bar in timeline.bars if window.shows(bar.began, bar.ended)]
        self._rows: dict[Lane, int] = {
            lane: 1 + max((bar.row for bar in self._bars if bar.lane == lane), default=0) for lane in get_args(Lane)
        }
        self._steps = {bar.number for bar in timeline.of("differentiation")}
        self._computing = {bar.event: bar for bar in self._bars if bar.kind == "computing"}
        self._used = {id(arrow.target): arrow.source.program for arrow in timeline.arrows if arrow.kind == "reading"}
        self._said_until = -LEFT  # end of the last words above the host's bars
        self._strips, self._bottoms = stack(self._rows, emulated=bool(self._computing), notes=self._example is not None)
        self._height = self._strips[-1].top

    def figure(self, title: str, subtitles: Sequence[str]) -> Figure:
        """The whole picture."""
        height = self._height + TOP + LINE * max(0, len(subtitles) - 1) + BOTTOM
        figure = Figure(figsize=(WIDTH, height), facecolor=self._theme.ground)
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / height, self._width / WIDTH, self._height / height))
        axes.set_facecolor(self._theme.ground)
        axes.set_xlim(0.0, self._width)
        axes.set_ylim(0.0, self._height)
        self._draw_lanes(axes)
        self._draw_gaps(axes)
        for arrow in self._timeline.arrows:
            if self._window.shows(arrow.began, arrow.ended):
                self._draw_arrow(axes, arrow)
        for bar in self._bars:
            self._draw_bar(axes, bar)
        self._draw_measurements(axes)
        if self._example is not None:
            self._draw_example(axes, self._example)
        self._draw_axis(axes)
        figure.text(0.16 / WIDTH, 1 - 0.16 / height, title, size=12.5, weight="bold", color=self._theme.ink, va="top")
        for number, line in enumerate(subtitles):
            y = 1 - (0.40 + LINE * number) / height
            figure.text(0.16 / WIDTH, y, line, size=SMALL, color=self._theme.muted, va="top")
        return figure

    def _left(self, bar: Bar) -> float:
        """Left edge of a bar; of two instants at one place, the one that comes first lies left."""
        later = bar.kind in ("differentiation", "upload") and bar.began == bar.ended
        return self._x(bar.began) + (0.07 if later and self._timeline.unit == "τ" else 0.0)

    def _width_of(self, bar: Bar) -> float:
        return max(self._x(bar.ended) - self._x(bar.began), THINNEST)

    def _y(self, bar: Bar) -> float:
        """Bottom of a bar: the first row of uploads is next to the device, those of other lanes at their lane's top."""
        row = bar.row if bar.lane == "uploads" else self._rows[bar.lane] - 1 - bar.row
        return self._bottoms[bar.lane] + ROW * row + 0.5 * (ROW - BAR)

    def _draw_lanes(self, axes: Axes) -> None:
        for strip in self._strips:
            axes.add_patch(
                Rectangle(
                    (0, strip.bottom), self._width, strip.top - strip.bottom, color=self._theme.lane, lw=0, zorder=0
                )
            )
            middle, half = 0.5 * (strip.bottom + strip.top), 0.055 + 0.075 * strip.about.count("\n")
            words: dict[str, Any] = {"va": "center", "linespacing": 1.15}
            axes.text(0.16 - LEFT, middle + half, strip.name, size=11, weight="bold", color=self._theme.ink, **words)
            axes.text(0.16 - LEFT, middle - 0.1, strip.about, size=7.5, color=self._theme.muted, **words)

    def _draw_gaps(self, axes: Axes) -> None:
        bottom, top = self._strips[0].bottom, self._strips[-1].top
        for gap in self._timeline.gaps:
            if not self._window.shows(gap.began, gap.ended):
                continue
            x, right = max(self._x(gap.began), 0.0), min(self._x(gap.ended), self._width)
            axes.add_patch(
                Rectangle((x, bottom), right - x, top - bottom, color=self._theme.lost, alpha=0.12, lw=0, zorder=0.5)
            )
            for edge in (x, right):
                axes.plot([edge, edge], [bottom, top], color=self._theme.lost, lw=1, zorder=0.6)
            lasted = f"{gap.ended - gap.began:.2g} {self._timeline.unit}"
            words = [f"device lost for {lasted}", f"device lost\nfor {lasted}", "lost"]
            policy, reason = f"policy: {gap.lost.policy}", gap.lost.reason.partition(":")[0]
            words = [f"{words[0]}: {reason} ({policy})", f"{words[0]} ({policy})", f"{words[1]}\n({policy})", *words]
            text = _fitting(words, right - x - 0.1, TEXT)
            y = 0.5 * (self._strips[-2].bottom + self._strips[-2].top)
            axes.text(0.5 * (x + right), y, text, size=TEXT, color=self._theme.lost, ha="center", va="center", zorder=6)

    def _draw_bar(self, axes: Axes, bar: Bar) -> None:
        colour, words = self._dress(bar)
        x, y, width = self._left(bar), self._y(bar), self._width_of(bar)
        if bar.kind == "reading":
            axes.plot([x, x + width], [y + 0.5 * BAR] * 2, color=colour, lw=3, solid_capstyle="round", zorder=3)
            return
        if bar.kind == "wait":
            self._draw_wait(axes, bar)
            return
        box = FancyBboxPatch((x, y), width, BAR, f"round,pad=0,rounding_size={min(0.04, 0.3 * width)}", lw=0.8)
        box.set(facecolor=colour, edgecolor=self._theme.lane, zorder=3.5 if bar.kind == "update" else 3)
        if bar.lost:
            box.set(facecolor=self._theme.ground, edgecolor=colour, hatch="//////")
        axes.add_patch(box)
        left, right = max(x, 0.0), min(x + width, self._width)
        text = _fitting(words, right - left - 0.08, TEXT)
        ink = self._theme.ink if colour in (self._theme.neutral, self._theme.computing) else self._theme.on_program
        style: dict[str, Any] = {"size": TEXT, "color": ink, "va": "center_baseline"}
        if bar.lost:
            ground = {"boxstyle": "square,pad=0.15", "facecolor": self._theme.ground, "edgecolor": "none"}
            style |= {"size": SMALL, "color": colour, "bbox": ground}
        if text:
            axes.text(0.5 * (left + right), y + 0.5 * BAR, text, ha="center", zorder=4, **style)
        elif bar.kind == "update":
            half = 0.5 * _inches(words[0], SMALL) + 0.04
            middle = min(max(x + 0.5 * width, half), self._width - half)
            if middle - half < self._said_until:
                return
            self._said_until = middle + half
            style |= {"size": SMALL, "va": "bottom", "color": self._theme.ink if ink == self._theme.ink else colour}
            axes.text(middle, y + BAR + 0.03, words[0], ha="center", zorder=4, **style)

    def _draw_wait(self, axes: Axes, bar: Bar) -> None:
        """A dotted line where the host has nothing to do."""
        x, right, y = max(self._x(bar.began), 0.0), min(self._x(bar.ended), self._width), self._y(bar) + 0.5 * BAR
        if right - x < 2 * THINNEST:
            return
        axes.plot([x + 0.04, right - 0.04], [y, y], color=self._theme.muted, lw=1.2, ls=(0, (1, 1.6)), zorder=2)
        ground = {"boxstyle": "square,pad=0.2", "facecolor": self._theme.lane, "edgecolor": "none"}
        style: dict[str, Any] = {"size": SMALL, "color": self._theme.muted, "ha": "center", "va": "center_baseline"}
        lost = any(gap.began < bar.ended and gap.ended > bar.began for gap in self._timeline.gaps)
        computed = sum(
            max(0.0, min(bar.ended, computing.ended) - max(bar.began, computing.began))
            for computing in self._computing.values()
        )
        words = ["waits for the emulator", "waits"] if 2.0 * computed > bar.ended - bar.began else ["waits"]
        text = _fitting([] if lost else words, right - x - 0.3, SMALL)
        if text:
            axes.text(0.5 * (x + right), y, text, bbox=ground, zorder=2.2, **style)

    def _dress(self, bar: Bar) -> tuple[str, list[str]]:
        """Colour, and what may be written on the bar, the longest first."""
        of_program = self._theme.of_program(bar.program)
        match bar.event:
            case Uploaded(outcome=outcome) if bar.lost:
                return self._theme.lost, [outcome]
            case Uploaded(kept=kept) if bar.kind == "upload" and bar.program is not None:
                return of_program, [f"{'drive' if kept else 'upload'} {bar.number}", f"{bar.number}"]
            case Uploaded():
                return of_program, [f"evolves under program {bar.number}", f"program {bar.number}", f"{bar.number}"]
            case Updated(source=source, step=step):
                by = "" if source == "device" else f" ({source})"
                following = f", diff. {step + 1}" if self._timeline.unit == "τ" and step + 1 in self._steps else ""
                return self._theme.of_program(self._used.get(id(bar))), [f"update {step}{by}{following}"]
            case Read() if bar.kind == "computing":
                return self._theme.computing, [
                    f"computes reading {bar.number}",
                    f"computes {bar.number}",
                    f"{bar.number}",
                ]
            case _:
                return of_program, [f"differentiate {bar.number}", f"diff. {bar.number}", f"{bar.number}"]

    def _draw_arrow(self, axes: Axes, arrow: Arrow) -> None:
        source, target = arrow.source, arrow.target
        colour = self._theme.of_program(source.program or target.program)
        match arrow.kind:
            case "submit" | "take effect":
                colour = self._theme.lost if target.lost else colour
                start, end = self._x(arrow.began), self._x(arrow.ended)
                if source.began == source.ended:
                    start = self._left(source) + 0.5 * THINNEST
                    end = max(end, start)
                _curve(axes, (start, self._y(source)), (end, self._y(target) + BAR), colour)
            case "reading":
                link = self._y(source) + 0.5 * BAR
                end = max(self._x(arrow.ended), self._left(target) + 0.5 * self._width_of(target))
                leaves = self._x(arrow.began), self._surface
                if isinstance(source.event, Read) and (computing := self._computing.get(source.event)) is not None:
                    bottom = self._y(computing)
                    _curve(axes, leaves, (self._left(computing), bottom), colour, head=False)
                    leaves = self._x(computing.ended), bottom + BAR
                _curve(axes, leaves, (self._x(source.began), link), colour, head=False)
                _curve(axes, (self._x(source.ended), link), (end, self._y(target)), colour)

    @property
    def _surface(self) -> float:
        """Upper edge of the SPU's bars, where it is measured."""
        return self._bottoms["SPU"] + ROW * self._rows["SPU"] - 0.5 * (ROW - BAR)

    def _draw_measurements(self, axes: Axes) -> None:
        for measurement in self._timeline.measurements:
            if not self._window.shows(measurement.began, measurement.time):
                continue
            x, y, colour = self._x(measurement.time), self._surface, self._theme.of_program(measurement.program)
            if measurement.reading.window:
                axes.plot([self._x(measurement.began), x], [y, y], color=self._theme.ink, lw=2, zorder=5)
            face, edge = (colour, self._theme.ground) if measurement.used else (self._theme.ground, colour)
            axes.plot([x], [y], "o", ms=5.5, mfc=face, mec=edge, mew=1.0, zorder=6)

    def _draw_example(self, axes: Axes, example: Example) -> None:
        """Brackets for t and t_d below the SPU's lane."""
        bottom = self._strips[0].bottom
        y = bottom - 0.2
        x = [self._x(place) for place in (example.program.began, example.measurement.time, example.following.began)]
        for end in x:
            axes.plot([end, end], [y - 0.06, bottom + PAD], color=self._theme.ink, lw=0.8, zorder=2)
        axes.plot([x[0], x[2]], [y, y], color=self._theme.ink, lw=0.8, zorder=2)
        box: dict[str, Any] = {"boxstyle": "square,pad=0.25", "facecolor": self._theme.ground, "edgecolor": "none"}
        words: dict[str, Any] = {"size": TEXT, "color": self._theme.ink, "va": "center", "zorder": 3}
        texts = [f"analog time t = {in_tau(example.analog_time)}", f"delay t$_d$ = {in_tau(example.delay)}"]
        if max(x[2] - x[1], self._width - x[2]) < _inches(texts[1], TEXT) + 0.3:  # between its ends, or at their right
            texts = [", ".join(texts), ""]
        for text, left, right, side in zip(texts, x, x[1:], ("right", "left"), strict=False):
            if not text:
                continue
            if right - left > _inches(text, TEXT) + 0.3:
                axes.text(0.5 * (left + right), y, text, ha="center", bbox=box, **words)
            else:
                axes.text(x[0] - 0.08 if side == "right" else x[2] + 0.08, y, text, ha=side, **words)

    def _draw_axis(self, axes: Axes) -> None:
        window, unit, size, origin = self._window, "τ", 1.0, 0.0
        label = "device time in τ (the clock is stepped: the host's work takes none of it)"
        if self._timeline.unit == "s":
            unit, size = next((unit for unit in UNITS if window.length >= 5 * unit[1]), UNITS[-1])
            label = f"host time in {unit}, from {window.began:.3f} s after the record began"
            origin = window.began
        ticks = self._x.ticks(origin, size)
        axes.set_xticks([self._x(tick) for tick in ticks], [f"{(tick - origin) / size:.6g}" for tick in ticks])
        axes.set_yticks([])
        axes.tick_params(length=3, color=self._theme.muted, labelcolor=self._theme.muted, labelsize=SMALL)
        axes.set_xlabel(label, size=SMALL, color=self._theme.muted, loc="left")
        axes.text(self._width, -0.25, self._legend(), size=SMALL, color=self._theme.muted, ha="right", va="top")
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)

    def _legend(self) -> str:
        """Return the legend of the signs that occur."""
        shown = [m for m in self._timeline.measurements if self._window.shows(m.began, m.time)]
        signs = {
            "● reading": any(m.used for m in shown),
            "○ reading not used": any(not m.used for m in shown),
            "▨ upload that did not take effect": any(bar.lost for bar in self._bars),
        }
        return "    ".join(sign for sign, occurs in signs.items() if occurs)


def _curve(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, *, head: bool = True) -> None:
    """A line from one lane to another, leaving and arriving upright; with a head it is an arrow."""
    (x, y), (u, v) = start, end
    middle = 0.5 * (y + v)
    bend = MplPath([(x, y), (x, middle), (u, middle), (u, v)], [MplPath.MOVETO, *[MplPath.CURVE4] * 3])
    style = "-|>,head_length=4,head_width=2" if head else "-"
    arrow = FancyArrowPatch(path=bend, arrowstyle=style, color=colour, lw=1.4, zorder=2.5, shrinkA=0, shrinkB=0)
    arrow.set(fill=head, joinstyle="miter")
    axes.add_patch(arrow)


def _inches(text: str, size: float) -> float:
    """Width of a text of that many points; of its widest line."""
    font = FontProperties(family=FONT)
    return (
        max(float(TextPath((0, 0), line, size=size, prop=font).get_extents().width) for line in text.split("\n")) / 72
    )


def _fitting(texts: Sequence[str], width: float, size: float) -> str:
    """The first text that is at most that many inches wide, or nothing."""
    return next((text for text in texts if _inches(text, size) <= width), "")
