"""Time and memory of one training iteration, measured in a process where nothing else is computed."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import psutil
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from host_client.blocking import Spu
from spu_lab.benchmarks.memory import peak_bytes
from spu_lab.benchmarks.networks import Network
from spu_lab.studies.devices import open_device
from spu_lab.studies.iteration_methods import METHODS, Method, Step
from spu_lab.tasks.mnist import reference_network

SHORT = 2.0
"""Seconds of a first iteration above which no further one is made with its seed; that one is the result."""

MAX_STEPS = 20
"""Timed iterations of each seed, at most."""

INPUTS = 32
"""Features of a sample, about."""


@dataclass(frozen=True)
class Size:
    """Size of an iteration.

    Attributes:
        parameters: N, about.
        batch: b.
        outputs: d_z.
    """

    parameters: int
    batch: int
    outputs: int

    def __str__(self) -> str:
        """For a job's name."""
        return f"N = {self.parameters:,}, b = {self.batch}, d_z = {self.outputs}"


@dataclass(frozen=True)
class Cost:
    """Cost of an iteration.

    Attributes:
        method: label of the method.
        size: the requested one, but with the N of the network.
        seconds: time by seed, each the median of several iterations; that which a device model adds included.
        modelled: part of it that is modelled and not measured, in s.
        nbytes: max bytes allocated in addition during one iteration: by torch in this process, and resident in the
            processes of the daemon; for a modelled device, what it holds.
        calls: forward passes of the model in an iteration.
    """

    method: str
    size: Size
    seconds: tuple[float, ...]
    modelled: float
    nbytes: int
    calls: int


def perceptron(size: Size, seed: int) -> Network:
    """Return a network of three linear layers with tanh between, and one batch of random numbers.

    The hidden layers have the width w for which w² + w (33 + d_z) is about N; the number of inputs makes up for the
    rounding of w, so that N is within w/2 of the requested one.
    """
    torch.manual_seed(seed)
    n, outputs = size.parameters, size.outputs
    linear = INPUTS + 2 + outputs
    width = max(1, round((math.sqrt(linear**2 + 4 * (n - outputs)) - linear) / 2))
    inputs = max(1, round((n - outputs - width * (width + 2 + outputs)) / width))
    model = nn.Sequential(
        nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )
    targets = torch.randint(outputs, (size.batch,))
    return Network(model, nn.CrossEntropyLoss(), torch.randn(size.batch, inputs), targets)


def mnist_network(size: Size, seed: int) -> Network:
    """Return the reference network for MNIST with a batch of random pixels; N = 105,866 and d_z = 10."""
    torch.manual_seed(seed)
    pixels, targets = torch.rand(size.batch, 1, 28, 28), torch.randint(size.outputs, (size.batch,))
    return Network(reference_network(), nn.CrossEntropyLoss(), pixels, targets)


SMALL = Size(parameters=200, batch=4, outputs=3)
"""Size of an iteration that is made before all others."""

NETWORKS: dict[str, Callable[[Size, int], Network]] = {"perceptron": perceptron, "mnist": mnist_network}
"""Makers of networks, from a size and a seed, by name."""


def measure(method: str, size: Size, *, network: str, repeats: int, seconds_each: float, spu: str | None) -> Cost:
    """Time iterations with each of `repeats` seeds, and measure the memory of one with the first seed.

    Args:
        method: label, of `METHODS`.
        size: of the iteration.
        network: name, of `NETWORKS`.
        repeats: seeds, of network and batch.
        seconds_each: of timed iterations with each seed, see `time_steps`.
        spu: as of `open_device`; the memory of a device in this process is not counted.
    """
    chosen, build = METHODS[method], NETWORKS[network]
    with ExitStack() as stack:
        device = stack.enter_context(open_device(spu)) if chosen.device else None
        with _prepared(chosen, perceptron(SMALL, 0), device) as step:
            step()  # libraries load what they need
        idle = _resident_in_children()
        example = build(size, 0)
        with _prepared(chosen, example, device) as step:
            seconds = [time_steps(step, seconds_each)]
            with count_calls(example.model) as calls:
                modelled = step()
            if chosen.brief is not None:
                step = chosen.brief(example, None)
            with allocated_bytes() as allocated:
                step()
        resident = _resident_in_children() - idle
        for seed in range(1, repeats):
            with _prepared(chosen, build(size, seed), device) as step:
                seconds.append(time_steps(step, seconds_each))
    return Cost(
        method,
        replace(size, parameters=example.parameters),
        tuple(taken + modelled.seconds for taken in seconds),
        modelled.seconds,
        allocated[0] + modelled.nbytes + resident,
        len(calls),
    )


@contextmanager
def _prepared(method: Method, network: Network, device: Spu | None) -> Iterator[Step]:
    """Give the iteration of a method, with a session of its own where there is a device."""
    if device is None:
        yield method.make(network, None)
    else:
        with device.session(ttl=120.0) as session:
            yield method.make(network, session)


def time_steps(step: Step, seconds: float) -> float:
    """Return the median wall time of iterations, s, without the first one, or of that one where it takes long.

    Args:
        step: the iteration.
        seconds: after which no further one begins; two at least are made, and `MAX_STEPS` at most.
    """
    times: list[float] = []
    while len(times) < 2 or (sum(times[1:]) < seconds and len(times) <= MAX_STEPS):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
        if times[0] > SHORT:
            return times[0]
    return median(times[1:])


@contextmanager
def count_calls(model: nn.Module) -> Iterator[list[None]]:
    """Give a list that has an entry for each forward pass of a model within the block."""
    calls: list[None] = []
    hook = model.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def allocated_bytes() -> Iterator[list[int]]:
    """Give a list that holds, after the block, the max bytes of tensors that this thread allocated in it.

    They are counted by torch's profiler, exactly and whatever has been allocated before: resident memory, which comes
    in pages and is not released, does not resolve the iterations of a small network.
    """
    peak: list[int] = []
    with _without_messages(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield peak
    with tempfile.TemporaryDirectory() as folder, _without_messages():
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    peak.append(max((e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]"), default=0))


@contextmanager
def _without_messages() -> Iterator[None]:
    """Drop the messages that the profiler's library writes to the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _resident_in_children() -> int:
    """Return the max bytes ever resident in the processes that this one has started, such as those of its daemon."""
    return sum(peak_bytes(child.pid) for child in psutil.Process().children(recursive=True))
