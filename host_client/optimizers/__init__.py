"""Natural-gradient optimizers for the ordinary PyTorch loop: by a device (`TNGD`) and by digital baselines."""

from host_client.optimizers.ngd import NGD
from host_client.optimizers.ngd_woodbury import NGDWoodbury
from host_client.optimizers.tngd import TNGD

__all__ = ["NGD", "TNGD", "NGDWoodbury"]
