"""The curvature of a loss with respect to its inputs, element by element."""

from host_client.curvature.losses.call import Kind, LossCall
from host_client.curvature.losses.per_sample import PerSampleLoss
from host_client.curvature.losses.registry import check_criterion, loss_call

__all__ = ["Kind", "LossCall", "PerSampleLoss", "check_criterion", "loss_call"]
