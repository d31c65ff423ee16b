"""A Lightning callback that holds the session on a device for as long as a fit lasts."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from host_client.blocking import Session, connect


class DeviceSession(Callback):
    """Opens a session on a device before the optimizers are made, closes it when the fit ends, and logs what happened.

    A module's ``configure_optimizers`` finds the session by ``DeviceSession.of(self.trainer)``. After each training
    batch the optimizer's `counts` are logged under ``optimizer/…``, a number each that only grows.

    Args:
        address: ``unix:PATH`` or ``HOST:PORT`` of a daemon, or ``inproc:`` for an emulator in this process.
        ttl: seconds after which the device is free again when this process is killed.
        options: further ones of `host_client.connect`.
    """

    def __init__(self, address: str, *, ttl: float = 30.0, **options: Any) -> None:
        self._address, self._ttl, self._options = address, ttl, options
        self._open: ExitStack | None = None
        self._session: Session | None = None

    @staticmethod
    def of(trainer: Trainer) -> Session | None:
        """The session that a fit of this trainer holds; None where it has no such callback, so no device.

        Raises:
            RuntimeError: outside of a fit.
        """
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, DeviceSession):
                return callback.session
        return None

    @property
    def session(self) -> Session:
        """The open session.

        Raises:
            RuntimeError: outside of a fit.
        """
        if self._session is None:
            raise RuntimeError("the session on the device is open while trainer.fit runs, and only then")
        return self._session

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connect and open the session, before ``configure_optimizers``.

        Raises:
            SpuError: when there is no device, or when it is in use.
        """
        if stage == "fit":
            with ExitStack() as stack:
                spu = stack.enter_context(connect(self._address, **self._options))
                self._session = stack.enter_context(spu.session(ttl=self._ttl))
                self._open = stack.pop_all()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the counts of each optimizer that has any."""
        for optimizer in trainer.optimizers:
            counts = getattr(optimizer, "counts", {})
            pl_module.log_dict({f"optimizer/{name}": float(count) for name, count in counts.items()})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the session; the device is free."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the session; the device is free."""
        self._close()

    def _close(self) -> None:
        stack, self._open, self._session = self._open, None, None
        if stack is not None:
            stack.close()
