"""Outcomes of operators that are sent ahead."""

from __future__ import annotations

import pytest

from host_client.links.lease import Upload
from tests.system.raw import eventually


class Ahead:
    """Outcomes of operators that are sent ahead, through any session of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outcomes: dict[Upload, str] = {}
        begin, run, abandon = Upload.begin, Upload.run, Upload.abandon

        def counting_begin(upload):
            self.outcomes[upload] = "none yet"
            begin(upload)

        def counting_run(upload, *args, **options):
            self._end(upload, "finished")
            return run(upload, *args, **options)

        async def counting_abandon(upload):
            self._end(upload, "abandoned")
            await abandon(upload)

        monkeypatch.setattr(Upload, "begin", counting_begin)
        monkeypatch.setattr(Upload, "run", counting_run)
        monkeypatch.setattr(Upload, "abandon", counting_abandon)

    def became(self, begun: int, finished: int, abandoned: int) -> bool:
        """Return whether so many were begun, finished and abandoned; the last happens in the background."""
        expected = (begun, finished, abandoned)
        eventually(lambda: self._counts() == expected, f"{expected}")
        return True

    def _end(self, upload: Upload, outcome: str) -> None:
        if self.outcomes.get(upload) == "none yet":
            self.outcomes[upload] = outcome

    def _counts(self) -> tuple[int, int, int]:
        outcomes = list(self.outcomes.values())
        return len(outcomes), outcomes.count("finished"), outcomes.count("abandoned")
