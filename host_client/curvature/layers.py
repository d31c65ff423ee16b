"""Which layers the capture knows the Jacobian rows of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from host_client.curvature.errors import UnsupportedLayer
from host_client.curvature.forms import Form, bias_form, conv2d_form, linear_form


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
        """The trained parameters with their dotted paths, in the order of their columns."""
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

    def form(self, inputs: Tensor, columns: int, outputs: int) -> Form:
        """How its rows with respect to the trained parameters are held; the weight's columns come first.

        Args:
            inputs: the layer's input, shape (b, …).
            columns: number c of cotangents a sample.
            outputs: elements of the layer's output.
        """
        if not self.weight:
            return bias_form()
        if isinstance(self.module, nn.Linear):
            return linear_form(inputs, bias=self.bias)
        return conv2d_form(self.module, inputs, columns, outputs, bias=self.bias)


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
