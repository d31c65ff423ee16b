"""Matrix products, and attention, which consists of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from host_client.curvature.axis import Axis
from host_client.curvature.graph import Call
from host_client.curvature.rules.base import Axes, Operation, Rule, ToRows, with_one
from host_client.curvature.rules.elementwise import broadcast, numbered


@dataclass
class Product(Operation):
    """y = a Wᵀ + e, or y = a W + e, for inputs a of shape (n, d_in).

    Attributes:
        inputs: a.
        transposed: whether W is of shape (d_in, d_out).
    """

    inputs: Tensor
    roles: dict[int, str]
    shape: torch.Size
    transposed: bool = True

    def factors(self, axis: Axis) -> Tensor:
        """The inputs by sample, shape (count, p, d_in)."""
        return with_positions(axis.by_position(self.inputs, 0), 2)

    def cotangents(self, axis: Axis) -> ToRows:
        """From cotangents to those by sample, (k, count, p, d_out)."""
        return lambda cotangents: with_positions(axis.by_position(cotangents, 1), 3)

    def rows(self, role: str, axis: Axis, dtype: torch.dtype) -> ToRows:
        """Σ_p δ_p a_pᵀ, or Σ_p δ_p."""
        if role == "bias":
            return lambda cotangents: with_positions(axis.by_position(cotangents, 1), 3).sum(2)
        inputs = self.factors(axis).to(dtype)

        def weight(cotangents: Tensor) -> Tensor:
            delta = with_positions(axis.by_position(cotangents, 1), 3)
            left, right = (inputs.mT, delta) if self.transposed else (delta.mT, inputs)
            # Many outer products of small vectors: a batched product takes several times as long as multiplying.
            return (left * right if left.shape[-1] == 1 else left @ right).flatten(2)

        return weight


def with_positions(tensor: Tensor, dims: int) -> Tensor:
    """Give a tensor by sample a dimension of positions before the last, where it has none."""
    return tensor.unsqueeze(-2) if tensor.dim() == dims else tensor


class Mm(Rule):
    """`torch.mm`, (n, d_in) by (d_in, d_out)."""

    first, second, names = 0, 1, ("self", "mat2")

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in rows of the first matrix, or in columns of the second."""
        axis = with_one(axes)
        if axis is None:
            return None
        found: list[Axis | None] = [None] * len(call.edges)
        found[self.second if axis.dim else self.first] = axis
        return found

    def operation(self, call: Call) -> Operation | None:
        """A product with the second matrix."""
        if call.edges[self.second] is None or call.dtypes[0].is_complex:
            return None
        return Product(call.saved_tensor(self.names[0]), {self.second: "weight"}, call.outputs[0])

    def carry(self, call: Call, cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        """One product where the cotangents of the first matrix alone are wanted, and two otherwise."""
        (cotangent,) = cotangents
        if cotangent is None or sum(wanted) != 1 or not wanted[self.first] or call.dtypes[0].is_complex:
            return call.differentiate(cotangents)
        found: list[Tensor | None] = [None] * len(call.edges)
        found[self.first] = cotangent @ call.saved_tensor(self.names[1]).mT
        return found


class Addmm(Mm):
    """`torch.addmm`, a bias and a product; so linear layers are computed."""

    first, second, names = 1, 2, ("mat1", "mat2")

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in rows of the first matrix, in columns of the second, and in a bias with a row for each."""
        found, axis = super().follow(call, axes), with_one(axes)
        if found is None or axis is None or call.edges[0] is None:
            return found
        return [broadcast(call, axis, 0), *found[1:]]

    def operation(self, call: Call) -> Operation | None:
        """A product with the second matrix, and a bias."""
        if call.dtypes[0].is_complex or call.saved("alpha") != 1 or call.saved("beta") != 1:
            return None
        roles = {}
        if call.edges[0] is not None and call.argument(0) == call.outputs[0][1:]:
            roles[0] = "bias"
        if call.edges[2] is None:
            inputs = torch.empty(0)  # of the bias' rows they are no part
        else:
            roles[2], inputs = "weight", call.saved_tensor("mat1")
        return Product(inputs, roles, call.outputs[0])

    def carry(self, call: Call, cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        """As a product, where that has no factor."""
        return call.differentiate(cotangents) if call.saved("alpha") != 1 else super().carry(call, cotangents, wanted)


class Bmm(Rule):
    """`torch.bmm`, (batch, n, k) by (batch, k, m), and `torch.baddbmm`, which adds to it."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in the batch, in rows of the first matrices, or in columns of the second ones."""
        axis = with_one(axes)
        if axis is None:
            return None
        first, second = [axis if axis.dim in dims else None for dims in ((0, 1), (0, 2))]
        added = [broadcast(call, axis, 0) if call.edges[0] else None] if len(call.edges) == 3 else []
        return [*added, first, second]

    def operation(self, call: Call) -> Operation | None:
        """One product alone, as of `torch.einsum`, with its second matrix."""
        edge = len(call.edges) - 1
        if (
            call.outputs[0][0] != 1
            or call.edges[edge] is None
            or call.name != "BmmBackward0"
            or call.dtypes[0].is_complex
        ):
            return None
        return Product(call.saved_tensor("self"), {edge: "weight"}, call.outputs[0])


class Mv(Rule):
    """`torch.mv`, (n, k) by (k,)."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in rows of the matrix."""
        axis = with_one(axes)
        return None if axis is None else [axis, None]


class Attention(Rule):
    """Scaled dot-product attention, (batch, heads, n, d), by one of torch's fused kernels."""

    def follow(self, call: Call, axes: Axes) -> Axes | None:
        """Follow samples in the batch, or in the heads."""
        axis = with_one(axes)
        if axis is None or axis.dim > 1:
            return None
        there = [
            place is not None and call.argument(i)[axis.dim] == call.outputs[0][axis.dim]
            for i, place in enumerate(call.edges)
        ]
        return [axis if same and i < 3 else None for i, same in enumerate(there)]


RULES: dict[str, Rule] = {
    **numbered(("Mm",), Mm()),
    **numbered(("Addmm",), Addmm()),
    **numbered(("Bmm", "Baddbmm"), Bmm()),
    **numbered(("Mv",), Mv()),
    **numbered(
        [f"ScaledDotProduct{kind}Attention" for kind in ("Efficient", "Flash", "Cudnn")]
        + ["ScaledDotProductFlashAttentionForCpu"],
        Attention(),
    ),
}
"""Rules by the name of the node."""
