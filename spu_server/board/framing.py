"""Frames on a byte stream: a body with its CRC-32C, stuffed so that the zero byte occurs only between frames.

On the wire a frame is COBS(body ‖ CRC-32C(body), little-endian) followed by one zero byte (Cheshire and Baker,
"Consistent overhead byte stuffing", 1999). Whoever loses track waits for the next zero. A damaged frame passes the CRC
by chance once in 2³² times, and then still has to be the answer to the very request that is open (see `messages`).
"""

from __future__ import annotations

import struct

import google_crc32c
from cobs import cobs

MAX_BODY = 1100
"""Maximum number of bytes of a body: a message's header and a block of `messages.MAX_DATA` bytes."""

MAX_FRAME = MAX_BODY + 4 + (MAX_BODY + 4) // 254 + 1
"""Maximum number of bytes of a frame on the wire, without the zero."""


def make_frame(body: bytes) -> bytes:
    """Return the frame that carries `body`, with the zero at its end."""
    if len(body) > MAX_BODY:
        raise ValueError(f"the body has {len(body)} bytes; a frame carries at most {MAX_BODY}")
    return bytes(cobs.encode(body + struct.pack("<I", google_crc32c.value(body)))) + b"\0"


class Deframer:
    """Bytes in, bodies out. What does not pass is dropped and counted.

    Attributes:
        damaged: frames that did not pass their check.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self._begun = bytearray()
        self._too_long = False

    def receive(self, data: bytes) -> list[bytes]:
        """Bodies of all frames that end in `data`."""
        *ends, rest = data.split(b"\0")
        bodies = []
        for end in ends:
            self._add(end)
            if self._begun or self._too_long:
                body = None if self._too_long else _check(bytes(self._begun))
                if body is None:
                    self.damaged += 1
                else:
                    bodies.append(body)
            self._begun.clear()
            self._too_long = False
        self._add(rest)
        return bodies

    def _add(self, part: bytes) -> None:
        """Bytes without end must not fill the memory."""
        if self._too_long or len(self._begun) + len(part) > MAX_FRAME:
            self._too_long = True
            self._begun.clear()
        else:
            self._begun += part


def _check(frame: bytes) -> bytes | None:
    try:
        content: bytes = cobs.decode(frame)
    except cobs.DecodeError:
        return None
    body, check = content[:-4], content[-4:]
    return body if len(check) == 4 and google_crc32c.value(body) == struct.unpack("<I", check)[0] else None
