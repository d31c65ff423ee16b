"""What is no state, or none of this device, is refused, and the device stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import google_crc32c
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from host_client import Session
from spu_link import packing
from spu_link.errors import (
    CapacityExceeded,
    InvalidProgram,
)
from spu_link.operators import Rows
from tests.profiles import examples
from tests.system.device import A, B
from tests.system.state.runs import (
    same,
    stepped_inproc,
    untouched,
)


@pytest.mark.parametrize(
    ("spoilt", "match"),
    [
        (lambda state: b"x", "1 bytes of something else"),
        (lambda state: state[:-1], "something else"),
        (lambda state: state[:-40] + bytes([1]) * 40, "state.check is wrong"),
        (lambda state: save({"weight": torch.ones(3)}), "a file of tensors"),
    ],
)
def test_bytes_of_something_else_are_refused(stepped, state, spoilt, match):
    with untouched(stepped.address) as session, pytest.raises(InvalidProgram, match=match):
        session.restore_state(spoilt(state))


@pytest.fixture(scope="module")
def inproc() -> Iterator[Session]:
    with stepped_inproc() as session:
        session.program(Rows(A), B)
        yield session


@given(st.data())
@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bit_of_a_state_may_be_another(state, inproc, data):
    position = data.draw(st.integers(0, len(state) - 1))
    spoilt = bytearray(state)
    spoilt[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InvalidProgram):
        inproc.restore_state(bytes(spoilt))


def forged(state: bytes, change: Callable[[dict, dict[str, Tensor]], None]) -> bytes:
    """A state by somebody who knows the format."""
    tensors = load(state)
    about = json.loads(bytes(tensors[packing.ABOUT].numpy()))
    del tensors[packing.CHECK]
    change(about, tensors)
    tensors[packing.ABOUT] = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = google_crc32c.extend(crc, f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        crc = google_crc32c.extend(crc, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    tensors[packing.CHECK] = torch.frombuffer(bytearray(crc.to_bytes(4, "little")), dtype=torch.uint8)
    return save(tensors)


def test_a_forged_state_is_as_good_as_the_right_one_where_nothing_is_changed(state, inproc):
    inproc.restore_state(forged(state, lambda about, tensors: None))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda about, tensors: about.update(version=2), "state.version is 2"),
        (lambda about, tensors: about.update(driver="board"), "state.driver is 'board'; expected 'emulator'"),
        (lambda about, tensors: about["standing"].update(time=-1.0), "state.standing.time"),
        (lambda about, tensors: about["standing"].update(time=0.5), "after the time of saving"),
        (lambda about, tensors: about["standing"].update(operator_since=9), "operator is of no program"),
        (lambda about, tensors: about["standing"].update(running=False), "state.standing.running"),
        (lambda about, tensors: about.update(header=""), "without a program"),
        (lambda about, tensors: about.update(header="!"), "state.header"),
        (lambda about, tensors: about["facts"].update(steps=-1), "state.steps"),
        (lambda about, tensors: about["facts"].update(more=1), "state.more"),
        (lambda about, tensors: about["facts"].update(compute="cuda"), "state.compute is cuda"),
        (lambda about, tensors: about["facts"].update(time=5.0), "state.time"),
        (lambda about, tensors: tensors.update({"driver.state": torch.ones(2).double()}), "state.state"),
        (lambda about, tensors: tensors.update({"driver.state": tensors["driver.state"] / 0}), "state.state"),
        (lambda about, tensors: tensors.update({"driver.image": torch.ones(5).double()}), "state.image"),
        (lambda about, tensors: tensors.update({"driver.generator": torch.ones(5)}), "state.generator"),
        (lambda about, tensors: tensors.update({"program.0": torch.ones(2, 2)}), "state.program.0"),
        (lambda about, tensors: tensors.update({"program.0": tensors["program.0"] / 0}), "rows"),
        (lambda about, tensors: tensors.pop("program.1"), "state.places"),
        (lambda about, tensors: about["places"].update({"program.0": 3}), "state.places"),
    ],
)
def test_a_forged_state_is_refused_by_the_name_of_what_is_wrong(state, inproc, change, match):
    before = inproc.read()
    with pytest.raises(InvalidProgram, match=match):
        inproc.restore_state(forged(state, change))
    assert same(inproc.read(), before)


def test_a_state_that_is_too_large_for_the_device_is_refused(state):
    with stepped_inproc(cells=2) as session, pytest.raises(CapacityExceeded, match="3 cells, the device has 2"):
        session.restore_state(state)
    with stepped_inproc(max_bytes=100) as session, pytest.raises(CapacityExceeded, match="takes"):
        session.restore_state(bytes(2 << 20))
