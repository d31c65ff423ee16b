"""Over any line, a request is carried out at most once and an answer is the right one, or there is none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spu_server.board.host import Host, LinkFailed
from spu_server.board.messages import Kind, Status
from spu_server.board.target import BoardEndpoint, Memory, RefusedAccess
from tests.profiles import examples


class Counter(Memory):
    """Counts what was written; a read returns what and how often."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []

    def read(self, address: int, length: int) -> bytes:
        if address == 99:
            raise RefusedAccess(Status.BAD_ADDRESS)
        return bytes([address & 0xFF, len(self.written) & 0xFF]) * (length // 2) + b"x" * (length % 2)

    def write(self, address: int, data: bytes) -> None:
        self.written.append((address, data))


class Line:
    """Frames on their way; hypothesis says which are lost, damaged, doubled or late, in both directions."""

    def __init__(self, draw) -> None:
        self.draw = draw
        self.late: list[bytes] = []

    def pass_through(self, data: bytes) -> bytes:
        frames = [frame + b"\0" for frame in data.split(b"\0") if frame]
        out = []
        for frame in frames:
            fate = self.draw(st.sampled_from(["well", "well", "lost", "damaged", "doubled", "late"]))
            if fate == "damaged":
                bit = self.draw(st.integers(0, 8 * len(frame) - 1))
                broken = bytearray(frame)
                broken[bit // 8] ^= 1 << bit % 8
                out.append(bytes(broken))
            elif fate == "late":
                self.late.append(frame)
            else:
                out += {"well": [frame], "lost": [], "doubled": [frame, frame]}[fate]
            if self.late and self.draw(st.booleans()):
                out.append(self.late.pop(self.draw(st.integers(0, len(self.late) - 1))))
        return b"".join(out)


REQUESTS = st.lists(
    st.tuples(st.just(Kind.READ), st.integers(0, 98), st.integers(1, 9).map(lambda n: b"r" * n))
    | st.tuples(st.just(Kind.WRITE), st.integers(0, 98), st.binary(min_size=1, max_size=9)),
    max_size=6,
)


def exchange(host: Host, target: BoardEndpoint, line: Line, kind: Kind, address: int, data: bytes):
    sent = host.ask(kind, 0.0, address=address, data=data if kind == Kind.WRITE else b"", length=len(data))
    while True:
        answer = host.receive(line.pass_through(target.receive(line.pass_through(sent))))
        if answer is not None:
            return answer
        sent = host.remind(0.0)


@given(st.integers(0, 2**32 - 1), REQUESTS, st.data())
@settings(max_examples=examples(300))
def test_over_any_line_everything_happens_once_and_every_answer_is_right(link, requests, data) -> None:
    memory = Counter()
    host, target, line = Host(link=link), BoardEndpoint(memory), Line(data.draw)
    confirmed: list[tuple[int, bytes]] = []
    attempted = None
    try:
        exchange(host, target, line, Kind.GREET, 0, b"")
        for kind, address, content in requests:
            attempted = (address, content) if kind == Kind.WRITE else None
            answer = exchange(host, target, line, kind, address, content)
            assert answer.status == Status.OK
            if kind == Kind.WRITE:
                confirmed.append((address, content))
            else:
                n = len(content)
                assert answer.data == bytes([address, len(confirmed)]) * (n // 2) + b"x" * (n % 2)
            attempted = None
    except LinkFailed:
        pass  # reported, so nothing wrong was believed
    left = memory.written[len(confirmed) :]
    assert memory.written[: len(confirmed)] == confirmed
    assert left in ([], [attempted])


def test_a_good_line_needs_no_repetition() -> None:
    host, target = Host(), BoardEndpoint(Counter())
    for kind in (Kind.GREET, Kind.READ, Kind.WRITE):
        answer = host.receive(target.receive(host.ask(kind, 0.0, address=1, data=b"ab", length=2)))
        assert answer is not None
        assert answer.status == Status.OK
    assert (host.repeated, host.strangers, host.damaged) == (0, 0, 0)


def test_a_refused_access_is_reported_and_the_next_request_goes_on() -> None:
    host, target = Host(), BoardEndpoint(Counter())
    host.receive(target.receive(host.ask(Kind.GREET, 0.0)))
    for address, length, status in ((99, 2, Status.BAD_ADDRESS), (1, 0, Status.BAD_LENGTH), (1, 2, Status.OK)):
        answer = host.receive(target.receive(host.ask(Kind.READ, 0.0, address=address, length=length)))
        assert answer is not None
        assert answer.status == status


def test_a_board_that_was_restarted_says_so_instead_of_going_on() -> None:
    memory = Counter()
    host = Host()
    host.receive(BoardEndpoint(memory).receive(host.ask(Kind.GREET, 0.0)))
    answer = host.receive(BoardEndpoint(memory).receive(host.ask(Kind.WRITE, 0.0, address=1, data=b"a")))
    assert answer is not None
    assert answer.status == Status.OUT_OF_ORDER
    assert memory.written == []


def test_a_second_host_takes_over_and_the_first_gets_an_error() -> None:
    memory = Counter()
    target, first, second = BoardEndpoint(memory), Host(), Host()
    first.receive(target.receive(first.ask(Kind.GREET, 0.0)))
    second.receive(target.receive(second.ask(Kind.GREET, 0.0)))
    answer = first.receive(target.receive(first.ask(Kind.WRITE, 0.0, address=1, data=b"a")))
    assert answer is not None
    assert answer.status == Status.OUT_OF_ORDER
    assert memory.written == []


def test_a_request_without_an_answer_is_given_up_within_two_seconds() -> None:
    host, now = Host(), 0.0
    host.ask(Kind.GREET, now)
    with pytest.raises(LinkFailed, match="sent 5 times"):  # noqa: PT012 - the last reminder of several
        while True:
            now += host.seconds_left(now)
            host.remind(now)
    assert 1.0 < now < 2.0
