"""Natural-gradient optimizers for the ordinary PyTorch loop: by a device (`TNGD`) and by digital baselines."""

from host_client.curvature import Diverged
from host_client.optimizers.kfac import KFAC
from host_client.optimizers.levenberg_marquardt import LevenbergMarquardt
from host_client.optimizers.named import OptimizerName, hyperparameters_of, make_optimizer
from host_client.optimizers.ngd import NGD
from host_client.optimizers.tngd import TNGD
from host_client.optimizers.trial import LineSearch

__all__ = [
    "KFAC",
    "NGD",
    "TNGD",
    "Diverged",
    "LevenbergMarquardt",
    "LineSearch",
    "OptimizerName",
    "hyperparameters_of",
    "make_optimizer",
]
