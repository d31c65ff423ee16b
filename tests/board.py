"""A simulated board under test, in a separate process."""

from __future__ import annotations

import selectors

from tests.forked import Forked, command
from tests.pressure import Undisturbed

READY_SECONDS = 30.0


class BoardSimulator:
    """`spu-board-simulator` on a TCP port or a pseudo-terminal; ready when made.

    Attributes:
        address: for the driver.
    """

    def __init__(self, *options: str) -> None:
        self.process = Forked(command, "spu_server.board.simulator.cli", *options)
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            watch = Undisturbed()
            while not selector.select(1.0):
                if watch.seconds < READY_SECONDS:
                    continue
                self.process.kill()
                raise AssertionError(f"not ready after {READY_SECONDS} s")
        line = self.process.stdout.readline().split()
        assert line[:1] == ["ready"], line
        self.address = line[1]

    def close(self) -> None:
        """Stop it; it ends well unless a test has killed it."""
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(60.0) == 0
        self.process.stdin.close()
        self.process.stdout.close()

    def __enter__(self) -> BoardSimulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
