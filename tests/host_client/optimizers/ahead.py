"""A session that notes what becomes of what is sent ahead."""

from __future__ import annotations

from host_client import Session


class Ahead:
    """A session that only notes what becomes of an upload, and solves by itself."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.begun = 0
        self.finished = 0
        self.abandoned = 0

    @property
    def capacity(self):
        return self.session.capacity

    def solve(self, *args, **options):
        return self.session.solve(*args, **options)

    def upload(self, operator, *, precision=None):
        self.begun += 1
        return _Upload(self, self.session.upload(operator, precision=precision))

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.begun, self.finished, self.abandoned


class _Upload:
    def __init__(self, ahead, upload):
        self.ahead, self.upload, self.operator = ahead, upload, upload.operator

    def solve(self, drive, **options):
        self.ahead.finished += 1
        return self.upload.solve(drive, **options)

    def abandon(self):
        self.ahead.abandoned += 1
        self.upload.abandon()
