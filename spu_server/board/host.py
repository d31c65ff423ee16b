"""The host's end: one request at a time, sent again until it is answered or given up. No I/O, no clock of its own."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from spu_server.board.framing import Deframer, make_frame
from spu_server.board.messages import Answer, Kind, Request


class LinkFailed(ConnectionError):
    """The board does not answer, or not as agreed."""


@dataclass
class Host:
    """Keeps count of requests and knows the answers from what else arrives.

    A request that is sent again has the same number, so the board carries it out once. Seconds are monotonic. With the
    defaults a dead line is known after 1.65 s, and a line that loses one frame in a hundred each way is taken for dead
    once in 3·10⁸ requests.

    Args:
        timeout: seconds until the first repetition; each further one takes twice as long, up to `max_timeout`.
        attempts: times that a request is sent in all.
        link: names the connection; drawn at random.

    Attributes:
        repeated: requests sent again.
        strangers: bodies that passed their check and answer nothing that is open: late copies, or another connection's.
    """

    timeout: float = 0.15
    max_timeout: float = 0.4
    attempts: int = 5
    link: int = field(default_factory=lambda: secrets.randbits(32))
    repeated: int = 0
    strangers: int = 0
    _number: int = 0
    _open: Request | None = None
    _sent: int = 0
    _due: float = 0.0
    _deframer: Deframer = field(default_factory=Deframer)

    @property
    def longest(self) -> float:
        """Seconds until a request that nothing answers is given up."""
        return sum(min(self.timeout * 2.0**sent, self.max_timeout) for sent in range(self.attempts))

    @property
    def damaged(self) -> int:
        """Frames that did not pass their check."""
        return self._deframer.damaged

    def ask(self, kind: Kind, now: float, *, address: int = 0, data: bytes = b"", length: int = 0) -> bytes:
        """Open a request: the bytes to send."""
        assert self._open is None, "one request at a time"
        self._open = Request(kind, self.link, self._number, address, data, length)
        self._number += 1
        self._sent = 0
        return self._send(now)

    def receive(self, data: bytes) -> Answer | None:
        """Take in what has arrived: the answer to the open request, if it is there."""
        found = None
        for body in self._deframer.receive(data):
            answer = Answer.decode(body, self._open) if self._open is not None else None
            if answer is None:
                self.strangers += 1
            else:
                found, self._open = answer, None
        return found

    def seconds_left(self, now: float) -> float:
        """Seconds to wait for bytes before `remind`."""
        return max(0.0, self._due - now)

    def remind(self, now: float) -> bytes:
        """No answer came in time: the bytes to send once more.

        Raises:
            LinkFailed: when it has been sent often enough.
        """
        assert self._open is not None
        if self._sent >= self.attempts:
            request, self._open = self._open, None
            raise LinkFailed(
                f"the board has not answered request {request.number} ({Kind(request.kind).name.lower()} at "
                f"{request.address:#06x}), sent {self._sent} times; {self.damaged} damaged frames so far"
            )
        self.repeated += 1
        return self._send(now)

    def _send(self, now: float) -> bytes:
        assert self._open is not None
        self._due = now + min(self.timeout * 2**self._sent, self.max_timeout)
        self._sent += 1
        # A zero first: whatever noise arrived before the frame is not part of it.
        return b"\0" + make_frame(self._open.encode())
