"""Natural-gradient optimizers for the ordinary PyTorch loop: by a device (`TNGD`) and by digital baselines."""

from host_client.curvature import Diverged
from host_client.optimizers.kfac import KFAC
from host_client.optimizers.levenberg_marquardt import LevenbergMarquardt
from host_client.optimizers.line_search import LineSearch
from host_client.optimizers.named import OptimizerName, hyperparameters_of, make_optimizer
from host_client.optimizers.ngd import NGD
from host_client.optimizers.ngd_cg import NGDCG
from host_client.optimizers.ngd_woodbury import NGDWoodbury
from host_client.optimizers.tngd import TNGD

__all__ = [
    "KFAC",
    "NGD",
    "NGDCG",
    "TNGD",
    "Diverged",
    "LevenbergMarquardt",
    "LineSearch",
    "NGDWoodbury",
    "OptimizerName",
    "hyperparameters_of",
    "make_optimizer",
]
