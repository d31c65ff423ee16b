"""The curvature of a criterion with respect to its input, as cotangents for the capture to backpropagate."""

from host_client.curvature.losses.root import Kind, check_criterion, loss_columns, loss_root

__all__ = ["Kind", "check_criterion", "loss_columns", "loss_root"]
