"""A program on its way to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from host_client import aio
from host_client.blocking.facade import Facade, waiting
from spu_link.operators import Operator

if TYPE_CHECKING:
    from host_client.blocking.session import Session


class Upload(Facade[aio.Upload]):
    """A program on its way: the operator first, then the rest. Made by `Session.upload`; see `host_client.aio.Upload`.

    Bytes go in the background. One call of `program`, `solve` or `abandon` ends it, or the end of a ``with`` block.
    """

    def __init__(self, upload: aio.Upload, session: Session) -> None:
        super().__init__(upload, upload.abandon)
        self._session = session  # which lives as long

    @property
    def operator(self) -> Operator:
        """F."""
        return self._aio.operator

    @property
    def sent_bytes(self) -> int:
        """Bytes of tensors that have left so far."""
        return self._aio.sent_bytes

    program = waiting(aio.Upload.program)
    solve = waiting(aio.Upload.solve)

    def abandon(self) -> None:
        """Break off, unless it is over. Nothing is left behind, and the old program goes on."""
        self.close()

    def __enter__(self) -> Self:
        """The upload itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Abandon what has not been finished."""
        self.abandon()
