"""One plot for each benchmark that has something to show in addition to its ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from spu_lab.performance.names import CURVATURES, NETWORKS, OURS, name_of
from spu_lab.training.report import COLOURS, INK, MUTED, dress, save_whole

Content = Mapping[str, Any]
"""A result file."""


def plot(content: Content, path: Path) -> bool:
    """Draw a benchmark's results as PNG: in its own way where it has one, else its wall times as bars.

    Returns:
        Whether there was something to draw.

    Raises:
        OSError: when the file cannot be made.
    """
    figure = Figure(figsize=(10, 4.6), dpi=130, layout="constrained", facecolor="white")
    draw = _DRAWINGS.get(content["name"], _seconds)
    if not draw(figure, content["results"]):
        return False
    save_whole(figure, path)
    return True


def _seconds(figure: Figure, results: Content) -> bool:
    """Bars of the flat wall times of a benchmark."""
    seconds = results.get("seconds", {})
    if not seconds or not all(isinstance(value, (int, float)) for value in seconds.values()):
        return False
    figure.set_figheight(1.2 + 0.26 * len(seconds))
    _bars(figure.subplots(), seconds, "Wall time, shortest first (logarithmic)")
    return True


def _solve(figure: Figure, results: Content) -> bool:
    """Time against N compared with thermox, and bars of the ways to solve the reference network's system."""
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    seconds, sizes = results["seconds"], results["settings"]["sizes"]
    ways = {
        "thermox": "thermox_draw",
        "program and reading": "ours_solve",
        "the emulator's mathematics alone": "ours_dynamics",
    }
    for colour, (label, key) in zip(COLOURS, ways.items(), strict=False):
        left.loglog(sizes, [seconds[f"{key}_{n}"] for n in sizes], "o-", color=colour, label=label, linewidth=2)
    left.set_xticks(sizes, [str(n) for n in sizes])
    left.minorticks_off()
    left.yaxis.set_major_formatter(FuncFormatter(_duration))
    left.legend(frameon=False, labelcolor=INK)
    dress(left, "Dense system: wall time against N")
    settings = results["settings"]
    steps = round(settings["analog_time"] / settings["delta"])
    shown = {key: value for key, value in seconds.items() if not key.rpartition("_")[2].isdecimal()}
    euler = {key: f", {steps} steps" for key in shown if key.startswith("euler")}
    shown |= {key: shown[key] * steps / settings["euler_steps_timed"] for key in euler}
    _bars(right, shown, "Reference network's system: wall time (logarithmic)", euler)
    return True


def _step(figure: Figure, results: Content) -> bool:
    """Time of steps and their parts, over a step of Adam, for every network."""
    axes = figure.subplots()
    grey, violet, green, blue, red = COLOURS[::-1]
    parts = {
        "forward and backward": ("plain_forward_backward", grey, 1.0),
        "Monte-Carlo capture": ("plain_capture_mc", violet, 1.0),
        "Monte-Carlo step": ("grpc_mc_step", green, 1.0),
        "asynchronous Monte-Carlo step": ("free_mc_step", green, 0.45),
        "exact capture": ("plain_capture_exact", blue, 1.0),
        "exact step": ("grpc_exact_step", red, 1.0),
        "asynchronous exact step": ("free_exact_step", red, 0.45),
    }
    networks, width = results["seconds"], 0.86 / len(parts)
    places = np.arange(len(networks))
    for number, (label, (key, colour, alpha)) in enumerate(parts.items()):
        heights = [times[key] / times["plain_adam_step"] for times in networks.values()]
        place = places + (number - (len(parts) - 1) / 2) * width
        bars = axes.bar(place, heights, 0.92 * width, color=colour, alpha=alpha, label=label)
        axes.bar_label(bars, fmt=lambda value: f"{value:.2g}", fontsize=7, color=MUTED, padding=1)
    labels = []
    for name, times in networks.items():
        size = results["sizes"][name]["parameters"]
        labels.append(f"{NETWORKS[name]}\nN = {size:,}\nAdam {_duration(times['plain_adam_step'])}")
    axes.set_xticks(places, labels)
    axes.set_yscale("log")
    axes.axhline(1.0, color=INK, linewidth=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=4, loc="upper center")
    axes.margins(y=0.28)
    dress(axes, "Steps through a daemon and their parts, in steps of Adam")
    return True


def _scale(figure: Figure, results: Content) -> bool:
    """Time and memory against N and against m."""
    for axes, series, x, label in (
        (axes, results[key], x, label)
        for axes, (key, x, label) in zip(
            figure.subplots(1, 2),
            (
                ("against_n", "parameters", f"N, with m = {results['against_n'][0]['rows']}"),
                ("against_m", "rows", f"m, with N = {results['against_m'][0]['parameters']:,}"),
            ),
            strict=True,
        )
    ):
        sizes = [point[x] for point in series]
        axes.loglog(sizes, [point["seconds"] for point in series], "o-", color=COLOURS[0], linewidth=2)
        axes.yaxis.set_major_formatter(FuncFormatter(_duration))
        axes.set_ylabel("wall time of program and reading", color=COLOURS[0])
        memory = axes.twinx()
        memory.loglog(sizes, [point["peak_bytes"] for point in series], "s--", color=COLOURS[1], linewidth=2)
        memory.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 2**30:g} GiB"))
        memory.set_yticks([2.0**power for power in range(27, 36)])
        memory.minorticks_off()
        memory.set_ylabel("peak memory of the process", color=COLOURS[1])
        memory.set_ylim(2.0**26, 2.0**35)
        memory.tick_params(length=0, colors=MUTED)
        memory.spines[["top", "right", "left", "bottom"]].set_visible(False)
        dress(axes, "Time and memory against " + label)
        axes.set_xlabel({"parameters": "parameters N", "rows": "rows m"}[x], color=MUTED)
    return True


def _link(figure: Figure, results: Content) -> bool:
    """Time of a program against its bytes, and by the type of its values, for every path."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    paths = {"shared memory": "shared", "gRPC, Unix socket": "unix", "gRPC, TCP": "tcp", "in-process": "inprocess"}
    sizes = {"4KB": 4e3, "400KB": 4e5, "5.8MB": 5.8e6, "100MB": 1e8}
    dtypes = ("float32", "float16", "bfloat16", "int16")
    seconds, width = results["seconds"], 0.8 / len(paths)
    for number, (colour, (label, path)) in enumerate(zip(COLOURS, paths.items(), strict=False)):
        times = [seconds[f"{path}_program_{size}"] for size in sizes]
        left.loglog(list(sizes.values()), times, "o-", color=colour, label=label, linewidth=2)
        heights = [1e3 * seconds[f"{path}_program_{dtype}"] for dtype in dtypes]
        right.bar(np.arange(len(dtypes)) + (number - 1.5) * width, heights, 0.92 * width, color=colour)
    left.set_xticks(list(sizes.values()), [size.replace("KB", " KB").replace("MB", " MB") for size in sizes])
    left.minorticks_off()
    left.yaxis.set_major_formatter(FuncFormatter(_duration))
    left.legend(frameon=False, labelcolor=INK)
    dress(left, "A program, by its bytes in float32")
    right.set_xticks(range(len(dtypes)), dtypes)
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
    dress(right, "One of 5.8 MB in float32, by type")
    return True


def _overlap(figure: Figure, results: Content) -> bool:
    """Time of an iteration of each loop, over the longer of differentiation and analog solve, for every case."""
    axes = figure.subplots()
    loops = {
        "synchronous": "blocking",
        "readings up to 1 step old": "free_one",
        "up to 2 steps old": "free",
        "newest reading": "newest",
    }
    cases = results["settings"]["cases"]
    places, width, labels = np.arange(len(cases)), 0.8 / len(loops), []
    for number, (colour, (label, key)) in enumerate(zip(COLOURS[::-1], loops.items(), strict=False)):
        heights = []
        for suffix, (name, _, _) in cases.items():
            times = results["seconds"][f"{name}{suffix}"]
            heights.append(times[key] / max(times["host"], times["device"]))
        bars = axes.bar(places + (number - 1.5) * width, heights, 0.92 * width, color=colour, label=label)
        axes.bar_label(bars, fmt=lambda value: f"{value:.2f}", fontsize=7.5, color=MUTED, padding=1)
    for suffix, (name, batch, kind) in cases.items():
        host = results["seconds"][f"{name}{suffix}"]["host"]
        labels.append(f"{NETWORKS[name]}, b = {batch}\n{CURVATURES[kind]}\ndifferentiation {_duration(host)}")
    axes.set_xticks(places, labels)
    axes.axhline(1.0, color=INK, linewidth=1)
    axes.axhline(2.0, color=INK, linewidth=1, linestyle=":")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=len(loops), loc="upper center")
    axes.margins(y=0.18)
    dress(axes, "Time of a step / the longer of differentiation and analog solve (dotted: twice that)")
    return True


_DRAWINGS: dict[str, Callable[[Figure, Content], bool]] = {
    "link": _link,
    "overlap": _overlap,
    "solve": _solve,
    "step": _step,
    "scale": _scale,
}


def _bars(axes: Axes, seconds: Mapping[str, float], title: str, notes: Mapping[str, str] | None = None) -> None:
    """Bars of wall times by the names in a result file, shortest first; `notes` follow the names of some."""
    timed: Sequence[str] = sorted(seconds, key=lambda one: seconds[one], reverse=True)
    ours = [name.removeprefix(f"{name.partition('_')[0]}_") in OURS or name in OURS for name in timed]
    colours = [COLOURS[0] if own else COLOURS[4] for own in ours]
    if len(set(ours)) == 2:
        kinds = {"this project": COLOURS[0], "compared with": COLOURS[4]}
        patches = [Patch(color=colour, label=kind) for kind, colour in kinds.items()]
        axes.legend(handles=patches, frameon=False, labelcolor=INK, loc="upper right")
    labels = [name_of(name) + (notes or {}).get(name, "") for name in timed]
    bars = axes.barh(labels, [seconds[name] for name in timed], color=colours)
    axes.bar_label(bars, [_duration(seconds[name]) for name in timed], fontsize=8, color=MUTED, padding=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_duration))
    axes.set_xlim(min(seconds.values()) / 3.0, max(seconds.values()) * 3.0)
    dress(axes, title)
    axes.tick_params(axis="y", labelcolor=INK)


def _duration(seconds: float, _: int = 0) -> str:
    """With the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
