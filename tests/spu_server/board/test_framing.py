"""Whatever happens to a frame, what comes out is what went in, or nothing."""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from spu_server.board.framing import MAX_BODY, MAX_FRAME, Deframer, make_frame
from tests.profiles import examples

BODIES = st.binary(max_size=MAX_BODY) | st.integers(0, MAX_BODY).map(lambda n: b"\1" * n)


@given(BODIES)
def test_a_frame_has_one_zero_at_its_end(body: bytes) -> None:
    frame = make_frame(body)
    assert frame.index(0) == len(frame) - 1 <= MAX_FRAME


@given(st.lists(BODIES, max_size=4), st.integers(1, 300))
def test_frames_arrive_in_whatever_pieces(bodies: list[bytes], size: int) -> None:
    stream = b"".join(map(make_frame, bodies))
    deframer = Deframer()
    got = [body for at in range(0, len(stream), size) for body in deframer.receive(stream[at : at + size])]
    assert got == bodies
    assert deframer.damaged == 0


@given(st.binary(max_size=60), st.data())
@settings(max_examples=examples(300))
def test_a_damaged_frame_is_dropped_and_the_next_one_is_read(body: bytes, data: st.DataObject) -> None:
    frame = bytearray(make_frame(body))
    bits = data.draw(st.sets(st.integers(0, 8 * len(frame) - 9), min_size=1, max_size=6))  # the end stays an end
    for bit in bits:
        frame[bit // 8] ^= 1 << bit % 8
    got = Deframer().receive(bytes(frame) + make_frame(b"next"))
    assert got == [b"next"]


@given(st.binary(max_size=5000))
def test_noise_is_never_a_frame(noise: bytes) -> None:
    deframer = Deframer()
    assert deframer.receive(noise) == []
    assert deframer.receive(b"\0" + make_frame(b"body")) == [b"body"]


def test_noise_without_an_end_does_not_fill_the_memory() -> None:
    deframer = Deframer()
    tracemalloc.start()
    try:
        for _ in range(1000):
            deframer.receive(b"\1" * 1000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 20 * MAX_FRAME
