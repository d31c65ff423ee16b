"""The error of what needs NetKet where it is not installed."""

from __future__ import annotations

from typing import ClassVar


class NetKetMissing(ImportError):
    """NetKet is not installed, and the experiment is about it."""

    remedy: ClassVar[str] = "install it: pip install 'tngd-spu[netket]'"

    def __init__(self) -> None:
        super().__init__("the experiment ising needs NetKet; pip install 'tngd-spu[netket]'")
