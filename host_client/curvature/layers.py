"""Which layers the capture knows the Jacobian rows of, and in which form it hands them on."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from host_client.curvature.errors import UnsupportedLayer
from spu_link.operators import Conv2dRows, LinearRows, Rows
from spu_link.operators.base import BlockFactor


@dataclass(frozen=True)
class Layer:
    """A layer of which something is trained.

    Attributes:
        path: dotted path in the model.
        module: the layer.
        weight: whether its weight is trained.
        bias: whether it has a bias, and that is trained.
    """

    path: str
    module: nn.Linear | nn.Conv2d
    weight: bool
    bias: bool

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trained parameters with their dotted paths, in the order of the columns of `rows`."""
        prefix = f"{self.path}." if self.path else ""
        trained = {"weight": self.weight, "bias": self.bias}
        return [(prefix + name, p) for name, p in self.module.named_parameters(recurse=False) if trained[name]]

    def check_input(self, inputs: Tensor) -> None:
        """Refuse an input that is not one row, or one image, a sample.

        Raises:
            UnsupportedLayer: naming the layer and the shape.
        """
        kind, expected = ("Linear", 2) if isinstance(self.module, nn.Linear) else ("Conv2d", 4)
        if inputs.dim() != expected:
            shape = "(batch, features)" if expected == 2 else "(batch, channels, height, width)"
            raise UnsupportedLayer(
                self.path, f"({kind}) got an input of shape {tuple(inputs.shape)}; only {shape} is supported"
            )

    def rows(self, inputs: Tensor, cotangents: Tensor) -> BlockFactor:
        """Rows of the Jacobian with respect to the trained parameters: factors or in full, whichever has fewer bytes.

        Args:
            inputs: the layer's input, shape (b, …).
            cotangents: gradients of c scalar functions of each sample with respect to the layer's output, shape
                (c, b, …).

        Returns:
            Row (c, i) of shape (c·b, number of trained parameters), the weight's columns first.
        """
        if not self.weight:
            summed = cotangents if cotangents.dim() == 3 else cotangents.sum((3, 4))
            return Rows(summed.flatten(0, 1))
        factors = (
            LinearRows(inputs, cotangents, bias=self.bias)
            if isinstance(self.module, nn.Linear)
            else _conv2d_rows(self.module, inputs, cotangents, bias=self.bias)
        )
        m, n = factors.shape
        return Rows(factors.to_rows()) if m * n < inputs.numel() + cotangents.numel() else factors


def _conv2d_rows(module: nn.Conv2d, inputs: Tensor, cotangents: Tensor, *, bias: bool) -> Conv2dRows:
    kernel, dilation = (module.kernel_size[0], module.kernel_size[1]), (module.dilation[0], module.dilation[1])
    if module.padding == "same":
        height, width = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        padding = (height // 2, width // 2)
        if height % 2 or width % 2:
            # An odd total has one more row or column of zeros after the image than before it.
            inputs = F.pad(inputs, (0, width % 2, 0, height % 2))
    elif isinstance(module.padding, str):
        padding = (0, 0)
    else:
        padding = (module.padding[0], module.padding[1])
    return Conv2dRows(
        inputs,
        cotangents,
        kernel=kernel,
        stride=(module.stride[0], module.stride[1]),
        padding=padding,
        dilation=dilation,
        groups=module.groups,
        bias=bias,
    )


def trained_layers(model: nn.Module) -> list[Layer]:
    """The layers of which something is trained, in the order of ``model.parameters()``.

    Raises:
        UnsupportedLayer: for a layer with trained parameters other than Linear and Conv2d with zero padding, and for
            parameters that two layers share.
        ValueError: when nothing is trained.
    """
    layers: list[Layer] = []
    owners: dict[nn.Parameter, str] = {}
    for path, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        for parameter in parameters.values():
            if parameter in owners:
                raise UnsupportedLayer(
                    path, f"shares a parameter with layer {owners[parameter]!r}; give each layer parameters of its own"
                )
            owners[parameter] = path
        trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
        if trained:
            layers.append(Layer(path, _supported(path, module), "weight" in trained, "bias" in trained))
    if not layers:
        raise ValueError("the model has no parameter that requires grad")
    return layers


def _supported(path: str, module: nn.Module) -> nn.Linear | nn.Conv2d:
    # Subclasses are free to compute something else in `forward`.
    if type(module) is nn.Conv2d:
        if module.padding_mode != "zeros":
            raise UnsupportedLayer(
                path, f"(Conv2d) has padding_mode={module.padding_mode!r}; use 'zeros', or pad in a layer before it"
            )
        return module
    if type(module) is nn.Linear:
        return module
    raise UnsupportedLayer(
        path,
        f"({type(module).__name__}) has trained parameters, and only Linear and Conv2d are supported; "
        "freeze it with requires_grad_(False) or replace it",
    )


def batch_norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """The batch normalisations with their dotted paths; frozen as they must be, they may still mix samples."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, _BatchNorm)]


def check_unmixed(path: str, norm: _BatchNorm) -> None:
    """Refuse a batch normalisation that takes its statistics from the batch: no sample has a Jacobian of its own then.

    Raises:
        UnsupportedLayer: naming the layer.
    """
    if norm.training or norm.running_mean is None:
        raise UnsupportedLayer(
            path,
            f"({type(norm).__name__}) takes its statistics from the batch, so samples are not independent; "
            "put it in eval mode or replace it",
        )
