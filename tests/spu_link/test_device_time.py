"""Times of one epoch are numbers; times of two epochs never meet by accident."""

import copy
import json
import operator
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spu_link.device_time import DeviceTime
from spu_link.errors import EpochMismatch
from spu_link.program import Applied, Reading

NUMBERS = st.floats(-1e12, 1e12)


@given(NUMBERS, NUMBERS)
def test_within_an_epoch_a_time_is_the_float_that_it_is(a, b):
    t, u = DeviceTime(a, 7), DeviceTime(b, 7)
    assert (t < u, t <= u, t > u, t >= u, t == u, t != u) == (a < b, a <= b, a > b, a >= b, a == b, a != b)
    assert (t < b, t <= b, t > b, t >= b, t == b, t != b) == (a < b, a <= b, a > b, a >= b, a == b, a != b)
    assert (a < u, a <= u, a > u, a >= u, a == u, a != u) == (a < b, a <= b, a > b, a >= b, a == b, a != b)
    assert type(t - u) is float
    assert t - u == a - b
    assert type(max(t, u)) is DeviceTime
    for later in (t + b, b + t):
        assert type(later) is DeviceTime
        assert (later, later.epoch) == (a + b, 7)
    assert type(t - b) is DeviceTime
    assert t - b == a - b
    assert type(t + u) is float
    assert t + u == a + b
    assert b - t == b - a
    assert (hash(t), repr(t), str(t), json.dumps(t), f"{t:.3f}") == (
        hash(a),
        repr(a),
        str(a),
        json.dumps(a),
        f"{a:.3f}",
    )


@pytest.mark.parametrize("act", ["lt", "le", "gt", "ge", "sub", "add"])
def test_times_of_two_epochs_do_not_compare(act):
    with pytest.raises(EpochMismatch, match=r"epoch 1, not of epoch 2|epoch 2, not of epoch 1"):
        getattr(operator, act)(DeviceTime(3.0, 1), DeviceTime(3.0, 2))
    with pytest.raises(EpochMismatch):
        max(DeviceTime(3.0, 1), DeviceTime(3.0, 2))


def test_equal_numbers_of_two_epochs_are_not_equal():
    assert DeviceTime(3.0, 1) != DeviceTime(3.0, 2)
    assert len({DeviceTime(3.0, 1), DeviceTime(3.0, 2), DeviceTime(3.0, 1)}) == 2


def test_copies_and_pickles_keep_the_epoch():
    time = DeviceTime(3.5, 9)
    for other in (copy.deepcopy(time), pickle.loads(pickle.dumps(time))):
        assert type(other) is DeviceTime
        assert (other, other.epoch) == (3.5, 9)


def test_in_arithmetic_with_tensors_it_is_a_number():
    time = DeviceTime(3.5, 9)
    torch.testing.assert_close(time + torch.ones(2), torch.full((2,), 4.5))
    torch.testing.assert_close(time - torch.ones(2), torch.full((2,), 2.5))


def test_what_the_device_answers_knows_its_epoch():
    applied = Applied(3, 2.0, epoch=5)
    reading = Reading(torch.ones(1), 4.0, 3, 2.0, 0.0, 4.5, epoch=5)
    assert reading.time - applied.time == reading.age
    assert reading.sent.epoch == reading.time.epoch == applied.time.epoch == reading.epoch == 5
    with pytest.raises(EpochMismatch):
        reading.time - Applied(1, 2.0, epoch=6).time
