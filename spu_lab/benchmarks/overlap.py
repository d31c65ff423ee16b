"""Host and device at once: the free-running loop compared with the blocking one, and lateness of scheduled readings.

The device's rate is set so that an analog solve of 50 τ takes as long as the host's differentiation (forward pass,
capture, backward pass, and the update), which is timed first, with no device in use. Then the same network is trained
through a daemon in four ways, which take turns: blocking (synchronous), each step waiting for its own program's
reading; free, each step using a reading of one of the two programs before (`NoOlderThan(programs=2)`), while the device
works on its own; the same with the one program before alone; and newest, with whatever reading is there. "Longer" is
the longer of differentiation and analog solve, "sum" is both.

A board computes by itself; its emulator needs a processor. So host and emulator compute with one thread each, on two
cores, with a Monte-Carlo Fisher matrix of one label a sample unless the name says exact. What the emulator needs must
be well below the host's differentiation, or it is no model of a device of that rate: that is so with LoRA on an
encoder. On the reference network both cores are busy all the time, and with exact curvature the loop is as fast as the
emulator computes. `processor_seconds` shows how much each of them computed in an iteration.

Readings are late by the time from the asked device time, on the host's clock as agreed with the device, to their
arrival in this process: one every 20 ms, on the reference network's operator for 64 samples, Monte-Carlo or exact;
"loaded" while programs of the same size (2.1 or 5.8 MB) are uploaded and take effect one after the other as fast as
they go. Before the emulator can return the state under a new program it needs its Gram matrix, which for an exact one
takes 10 to 20 ms; a board has no such work.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor

from host_client import TNGD, aio, connect
from host_client.curvature import Capture
from host_client.curvature.losses import Kind
from host_client.loop import Freshness, NoOlderThan
from spu_lab.benchmarks.memory import family
from spu_lab.benchmarks.networks import NETWORKS, Network
from spu_lab.benchmarks.targets import Target
from spu_lab.benchmarks.timing import alone, log, turn
from spu_lab.local_daemon import local_daemon
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.task import Task
from spu_link.errors import ReadInPast
from spu_link.operators import Operator
from spu_link.tuning import settle_process

ANALOG_TIME = 50.0
SETTINGS: dict[str, Any] = {"lr": 1e-4, "damping": 0.01, "analog_time": ANALOG_TIME}
LOOPS: dict[str, Freshness] = {
    "blocking": "program",
    "free": NoOlderThan(programs=2),
    "free_one": NoOlderThan(programs=1),
    "newest": "newest",
}
CASES: dict[str, tuple[str, int, Kind]] = {
    "": ("lora", 4, "mc"),
    "_512": ("reference", 512, "mc"),
    "_256": ("reference", 256, "mc"),
    "_exact": ("reference", 64, "exact"),
}
"""Network, samples and curvature, by the end of the ratio's name."""

WARMUP = 4
"""Iterations of each turn that are not timed."""

LATENESS: dict[Kind, str] = {"mc": "", "exact": "_exact"}
"""Curvature of the programs that are read and uploaded, and the end of the ratios' names."""

SETTLE_SECONDS = 1.0
"""Duration of the uploads before lateness is measured as well, in seconds."""

READ_EVERY = 0.02
"""Seconds from one scheduled reading to the next."""

AHEAD = 0.05
"""Time by which a reading is scheduled ahead, in seconds."""

RATIOS = {
    "overlap_vs_longer": "an iteration of the free-running loop, LoRA on MiniLM, 4 × 32 tokens, over the longer.",
    "blocking_vs_longer": "the same of the blocking loop.",
    "overlap_of_one_vs_longer": "of the free-running loop with readings of the program before alone.",
    "overlap_vs_sum": "an iteration of the free-running loop, over the sum of both.",
    "newest_vs_longer": "an iteration when each step takes the newest reading, over the longer.",
    "overlap_vs_longer_512": "as overlap_vs_longer, reference network of 512 samples.",
    "blocking_vs_longer_512": "as blocking_vs_longer, likewise.",
    "overlap_vs_longer_256": "as overlap_vs_longer, reference network of 256 samples.",
    "blocking_vs_longer_256": "as blocking_vs_longer, likewise.",
    "overlap_vs_longer_exact": "as overlap_vs_longer, reference network of 64 samples, exact curvature.",
    "blocking_vs_longer_exact": "as blocking_vs_longer, likewise.",
    "read_lateness_p50_ms_idle": "median lateness of a scheduled reading, in milliseconds, Monte-Carlo program.",
    "read_lateness_p99_ms_idle": "the lateness that 99 % of them stay below.",
    "read_lateness_p50_ms_loaded": "median lateness during uploads at full speed.",
    "read_lateness_p99_ms_loaded": "the lateness that 99 % stay below then.",
    "upload_mb_per_s_loaded": "speed of these uploads, in MB/s.",
    "read_lateness_p50_ms_idle_exact": "as read_lateness_p50_ms_idle, exact program.",
    "read_lateness_p99_ms_idle_exact": "as read_lateness_p99_ms_idle, likewise.",
    "read_lateness_p50_ms_loaded_exact": "as read_lateness_p50_ms_loaded, exact programs.",
    "read_lateness_p99_ms_loaded_exact": "as read_lateness_p99_ms_loaded, likewise.",
    "upload_mb_per_s_loaded_exact": "as upload_mb_per_s_loaded, likewise.",
}
TARGETS = {"overlap_vs_longer": Target("at most", 1.15), "read_lateness_p99_ms_loaded": Target("at most", 20)}


def run(
    rounds: int = 3,
    steps: int = 15,
    readings: int = 500,
    cases: Mapping[str, tuple[str, int, Kind]] = CASES,
    task: Callable[[], Task] = mnist,
) -> dict[str, Any]:
    """Measure.

    Args:
        rounds: turns of each loop.
        steps: iterations in a turn.
        readings: scheduled readings, idle and loaded.
        cases: network, samples and curvature by the end of the ratio's name.
        task: data for the reference network.
    """
    ratios: dict[str, float] = {}
    seconds: dict[str, Any] = {}
    processors: dict[str, Any] = {}
    for suffix, (name, batch, curvature) in cases.items():
        make = partial(NETWORKS[name], batch, task) if name == "reference" else partial(NETWORKS[name], batch)
        log.info("%s of %d samples, %s curvature", name, batch, curvature)
        host = alone(host_seconds, make, curvature, steps)
        rate = ANALOG_TIME / host
        with local_daemon(options=("--rate", str(rate)), threads=1) as address:
            times, processor = alone(loop_seconds, make, curvature, address, rounds, steps)
        device = ANALOG_TIME / rate
        longer = max(host, device)
        ratios |= {
            f"overlap_vs_longer{suffix}": times["free"] / longer,
            f"blocking_vs_longer{suffix}": times["blocking"] / longer,
        }
        if not suffix:
            ratios |= {
                "overlap_of_one_vs_longer": times["free_one"] / longer,
                "overlap_vs_sum": times["free"] / (host + device),
                "newest_vs_longer": times["newest"] / longer,
            }
        seconds[f"{name}{suffix}"] = {"host": host, "device": device, **times}
        processors[f"{name}{suffix}"] = processor
    lateness: dict[str, float] = {}
    for kind, suffix in LATENESS.items():
        log.info("lateness of readings, %s programs", kind)
        found = alone(read_lateness, partial(NETWORKS["reference"], 64, task), kind, readings)
        lateness |= {f"{name}{suffix}": value for name, value in found.items()}
    return {
        "ratios": ratios | lateness,
        "seconds": seconds,
        "processor_seconds": processors,
        "settings": {**SETTINGS, "rounds": rounds, "steps": steps, "readings": readings, "cases": dict(cases)},
    }


def host_seconds(make: Callable[[], Network], curvature: Kind, steps: int) -> float:
    """Median time of a step without a device: forward pass, capture, backward pass, drive and update."""
    torch.set_num_threads(1)
    network = make()
    capture = Capture(network.model, network.criterion, curvature=curvature)
    parameters: list[Tensor] = [*network.trained()]

    def differentiate() -> None:
        network.loss().backward()
        assert capture.operator_of_gradients().parameters
        drive = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        with torch.no_grad():
            parts = [
                part.view_as(p)
                for p, part in zip(parameters, drive.split([p.numel() for p in parameters]), strict=True)
            ]
            torch._foreach_add_(parameters, parts, alpha=-SETTINGS["lr"])
        network.model.zero_grad()
        capture.forget_gradients()

    return median(turn({"host": differentiate}, repeats=5 * steps, warmup=5)["host"])


def loop_seconds(
    make: Callable[[], Network], curvature: Kind, address: str, rounds: int, steps: int
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Median over rounds of the mean time of an iteration, by loop: single iterations are not alike in a pipeline.

    Also the processor time of host and daemon in an iteration.
    """
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in LOOPS}
    processor: dict[str, dict[str, float]] = {}
    with connect(address, timeout=300.0) as spu:
        for number in range(1, rounds + 1):
            for name, freshness in LOOPS.items():
                log.info("round %d of %d: %s", number, rounds, name)
                with spu.session() as session:
                    network = make()
                    optimizer = TNGD(
                        network.model, network.criterion, session, curvature=curvature, freshness=freshness, **SETTINGS
                    )
                    before = _processor_seconds(address)
                    times[name].append(_iteration_seconds(network, optimizer, steps))
                    after = _processor_seconds(address)
                processor[name] = {side: (after[side] - before[side]) / (WARMUP + steps) for side in after}
    return {name: median(values) for name, values in times.items()}, processor


def _processor_seconds(address: str) -> dict[str, float]:
    """Processor time used so far by this process, and by the daemon's."""
    sides = {"host": [os.getpid()], "daemon": family(address)}
    return {side: sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids) for side, pids in sides.items()}


def _iteration_seconds(network: Network, optimizer: TNGD, steps: int) -> float:
    began = 0.0
    for number in range(WARMUP + steps):
        if number == WARMUP:
            began = time.perf_counter()
        network.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - began) / steps


def read_lateness(make: Callable[[], Network], curvature: Kind, readings: int) -> dict[str, float]:
    """Lateness of scheduled readings, idle and during uploads; one thread each for daemon and client."""
    torch.set_num_threads(1)
    network = make()
    capture = Capture(network.model, network.criterion, curvature=curvature)
    drive = torch.cat([g.flatten() for g in torch.autograd.grad(network.loss(), network.trained())])
    operator = capture.operator
    capture.close()
    settle_process()
    with local_daemon(options=("--rate", "1000"), threads=1) as address:
        return asyncio.run(_read_lateness(address, operator, drive, readings))


async def _read_lateness(address: str, operator: Operator, drive: Tensor, readings: int) -> dict[str, float]:
    async with await aio.connect(address) as spu, spu.session() as session:
        await session.program(operator, drive, damping=SETTINGS["damping"], start="drive")
        idle = await _late_ms(session, readings)

        async def upload() -> None:
            while True:
                await session.program(operator, drive, damping=SETTINGS["damping"], start="drive")

        uploads = asyncio.create_task(upload())
        try:
            await asyncio.sleep(SETTLE_SECONDS)  # memory is registered, and the processor's caches know the way
            uploaded, began = session.uploaded_bytes, time.perf_counter()
            loaded = await _late_ms(session, readings)
        finally:
            uploads.cancel()
            await asyncio.gather(uploads, return_exceptions=True)
        speed = (session.uploaded_bytes - uploaded) / (time.perf_counter() - began)
    return {
        "read_lateness_p50_ms_idle": median(idle),
        "read_lateness_p99_ms_idle": _p99(idle),
        "read_lateness_p50_ms_loaded": median(loaded),
        "read_lateness_p99_ms_loaded": _p99(loaded),
        "upload_mb_per_s_loaded": speed / 1e6,
    }


def _p99(values: Sequence[float]) -> float:
    """Return the smallest value that 99 % do not exceed; one that is infinite has no neighbours to interpolate with."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


async def _late_ms(session: aio.Session, readings: int) -> list[float]:
    """Lateness of each reading, in milliseconds; infinite where its time had passed before the device was asked.

    The device time of each is checked to be the asked one.
    """

    async def read(at: float) -> float:
        try:
            reading = await session.read(at)
        except ReadInPast:
            return math.inf
        arrived = time.monotonic()
        if reading.time != at:
            raise AssertionError(f"asked for {at} τ, got {reading.time} τ")
        return 1e3 * (arrived - session.clock.host_time(at))

    pending = []
    first = time.monotonic() + AHEAD
    for number in range(readings):
        due = first + number * READ_EVERY
        await asyncio.sleep(max(0.0, due - AHEAD - time.monotonic()))
        pending.append(asyncio.create_task(read(session.clock.device_time(due))))
    return list(await asyncio.gather(*pending))
