"""What becomes of operators that are sent ahead."""

from __future__ import annotations

import pytest

from host_client.aio import Upload
from tests.system.raw import eventually


class Ahead:
    """What becomes of operators that are sent ahead, through any session of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[Upload] = []
        self.finished = 0
        self.abandoned = 0
        begin, stream, abandon = Upload.begin, Upload.stream, Upload.abandon

        def counting_begin(upload):
            self.begun.append(upload)
            begin(upload)

        def counting_stream(upload, *args, **options):
            self.finished += upload in self.begun
            return stream(upload, *args, **options)

        async def counting_abandon(upload):
            self.abandoned += upload in self.begun and not upload._over
            await abandon(upload)

        monkeypatch.setattr(Upload, "begin", counting_begin)
        monkeypatch.setattr(Upload, "stream", counting_stream)
        monkeypatch.setattr(Upload, "abandon", counting_abandon)

    def became(self, begun: int, finished: int, abandoned: int) -> bool:
        """Whether so many were begun, finished and abandoned; the last happens in the background."""
        expected = (begun, finished, abandoned)
        eventually(lambda: (len(self.begun), self.finished, self.abandoned) == expected, f"{expected}")
        return True
