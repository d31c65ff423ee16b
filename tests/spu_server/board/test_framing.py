"""Whatever happens to a frame, what comes out is what went in, or nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from spu_server.board.framing import MAX_BODY, MAX_FRAME, Deframer, framed, stuffed, unstuffed
from tests.profiles import examples

BODIES = st.binary(max_size=MAX_BODY) | st.integers(0, MAX_BODY).map(lambda n: b"\1" * n)


@given(BODIES)
def test_stuffing_leaves_no_zero_and_can_be_undone(body: bytes) -> None:
    assert 0 not in stuffed(body)
    assert unstuffed(stuffed(body)) == body
    assert len(framed(body)) <= MAX_FRAME + 1


@given(st.lists(BODIES, max_size=4), st.integers(1, 300))
def test_frames_arrive_in_whatever_pieces(bodies: list[bytes], size: int) -> None:
    stream = b"".join(map(framed, bodies))
    deframer = Deframer()
    got = [body for at in range(0, len(stream), size) for body in deframer.receive(stream[at : at + size])]
    assert got == bodies
    assert deframer.damaged == 0


@given(st.binary(max_size=60), st.data())
@settings(max_examples=examples(300))
def test_a_damaged_frame_is_dropped_and_the_next_one_is_read(body: bytes, data: st.DataObject) -> None:
    frame = bytearray(framed(body))
    bits = data.draw(st.sets(st.integers(0, 8 * len(frame) - 9), min_size=1, max_size=6))  # the end stays an end
    for bit in bits:
        frame[bit // 8] ^= 1 << bit % 8
    got = Deframer().receive(bytes(frame) + framed(b"next"))
    assert got == [b"next"]


@given(st.binary(max_size=5000))
def test_noise_is_never_a_frame_and_does_not_fill_the_memory(noise: bytes) -> None:
    deframer = Deframer()
    assert deframer.receive(noise) == []
    assert len(deframer._begun) <= MAX_FRAME
    assert deframer.receive(b"\0" + framed(b"body")) == [b"body"]
