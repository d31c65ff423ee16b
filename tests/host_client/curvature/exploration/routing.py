"""Operations that move elements: along an axis, by index tensors, lengths, masks and matrices of the data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.host_client.curvature.exploration.operations import ANY, FIXED, Axes, Place, fold, one_of, operation

PAIR = Axes(("any", "any"))
EVEN = Axes(("any",), smallest=2)
GROUPS = one_of(1, 2, 3)


# By index tensors


@operation("torch.gather", axis=ANY, count=GROUPS)
def gather(at: Place, h: Tensor, axis: int, count: int) -> Tensor:
    shape = list(h.shape)
    shape[axis] = count
    return h.gather(axis, at.data.integers(h.shape[axis], *shape))


@operation("torch.scatter", axis=ANY)
def scatter(at: Place, h: Tensor, axis: int) -> Tensor:
    order = at.data.order(axis, *h.shape)
    return torch.zeros_like(h).scatter(axis, order, h)


@operation("torch.scatter_add", axis=ANY, count=GROUPS)
def scatter_add(at: Place, h: Tensor, axis: int, count: int) -> Tensor:
    shape = list(h.shape)
    shape[axis] = count
    return h.new_zeros(shape).scatter_add(axis, at.data.integers(count, *h.shape), h)


@operation("torch.scatter_reduce", axis=ANY, reduce=one_of("sum", "mean", "amax"))
def scatter_reduce(at: Place, h: Tensor, axis: int, reduce: str) -> Tensor:
    return torch.zeros_like(h).scatter_reduce(axis, at.data.integers(h.shape[axis], *h.shape), h, reduce)


@operation("torch.index_select", axis=ANY, count=GROUPS)
def index_select(at: Place, h: Tensor, axis: int, count: int) -> Tensor:
    return h.index_select(axis, at.data.integers(h.shape[axis], count))


@operation("torch.index_add", axis=ANY, groups=GROUPS)
def pool_by_index_add(at: Place, h: Tensor, axis: int, groups: int) -> Tensor:
    """Graphs pooled by the number of the graph of each node."""
    shape = list(h.shape)
    shape[axis] = groups
    return h.new_zeros(shape).index_add(axis, at.data.integers(groups, h.shape[axis]), h)


@operation("torch.index_add", axis=ANY, groups=GROUPS)
def pool_contiguous_graphs(at: Place, h: Tensor, axis: int, groups: int) -> Tensor:
    """As above, with the nodes of a graph one after the other, as loaders of graphs have them."""
    shape = list(h.shape)
    shape[axis] = groups
    numbers = at.data.integers(groups, h.shape[axis]).sort().values
    return h.new_zeros(shape).index_add(axis, numbers, h)


@operation("torch.index_copy", axis=ANY)
def index_copy(at: Place, h: Tensor, axis: int) -> Tensor:
    return torch.ones_like(h).index_copy(axis, at.data.permutation(h.shape[axis]), h)


@operation("torch.index_fill", axis=ANY)
def index_fill(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.index_fill(axis, at.data.integers(h.shape[axis], 1), 0.5)


@operation("torch.index_put", axis=ANY, accumulate=one_of(True, False))
def index_put(at: Place, h: Tensor, axis: int, accumulate: bool) -> Tensor:
    moved = h.movedim(axis, 0)
    rows = at.data.integers(len(moved), len(moved)) if accumulate else at.data.permutation(len(moved))
    return torch.zeros_like(moved).index_put((rows,), moved, accumulate).movedim(0, axis)


@operation("Tensor.__getitem__(index)", axis=ANY, count=GROUPS)
def rows_by_index(at: Place, h: Tensor, axis: int, count: int) -> Tensor:
    moved = h.movedim(axis, 0)
    return moved[at.data.integers(len(moved), count)].movedim(0, axis)


@operation("Tensor.__getitem__(index, index)", axes=PAIR, count=GROUPS)
def elements_by_two_indices(at: Place, h: Tensor, axes: tuple[int, int], count: int) -> Tensor:
    """As the last states of sequences of several lengths are picked."""
    moved = h.movedim(axes, (0, 1))
    return moved[at.data.integers(moved.shape[0], count), at.data.integers(moved.shape[1], count)]


@operation("Tensor.__getitem__(mask)", axis=ANY)
def rows_by_mask(at: Place, h: Tensor, axis: int) -> Tensor:
    moved = h.movedim(axis, 0)
    mask = at.data.mask(len(moved))
    mask[0] = True
    return moved[mask].movedim(0, axis)


@operation("torch.take_along_dim", axis=ANY)
def take_along_dim(at: Place, h: Tensor, axis: int) -> Tensor:
    return torch.take_along_dim(h, at.data.order(axis, *h.shape), axis)


@operation("torch.take")
def take(at: Place, h: Tensor) -> Tensor:
    return h.take(at.data.integers(h.numel(), *h.shape))


@operation("Tensor.put")
def put(at: Place, h: Tensor) -> Tensor:
    return h.put(at.data.permutation(h.numel())[:1], h.new_full((1,), 0.5))


@operation("torch.segment_reduce", axis=ANY, segments=GROUPS, reduce=one_of("sum", "mean", "max"))
def segment_reduce(at: Place, h: Tensor, axis: int, segments: int, reduce: str) -> Tensor:
    moved = h.movedim(axis, 0).contiguous()
    # Where the largest entry occurs twice, torch's derivative is not linear, and autograd is no reference.
    moved = moved + torch.linspace(0.0, 1e-3, moved.numel(), dtype=h.dtype).view_as(moved)
    return torch.segment_reduce(moved, reduce, lengths=at.data.lengths(len(moved), segments)).movedim(0, axis)


@operation("Tensor.__setitem__(index)", axis=ANY)
def assign_rows(at: Place, h: Tensor, axis: int) -> Tensor:
    result = h.clone().movedim(axis, 0)
    order = at.data.permutation(len(result))
    result[order[:1]] = 0.5 * result[order[-1:]]
    return result.movedim(0, axis)


# By lengths


@operation("torch.split", "torch.cat", axis=ANY, parts=GROUPS)
def split_by_lengths(at: Place, h: Tensor, axis: int, parts: int) -> Tensor:
    pieces = h.split(at.data.lengths(h.shape[axis], parts).tolist(), axis)
    return torch.cat(pieces[::-1], axis)


@operation("torch.split", "torch.stack", axis=ANY, parts=GROUPS)
def pool_by_split(at: Place, h: Tensor, axis: int, parts: int) -> Tensor:
    pieces = h.split(at.data.lengths(h.shape[axis], parts).tolist(), axis)
    return torch.stack([piece.mean(axis) for piece in pieces], axis)


@operation("torch.tensor_split", "torch.concat", axis=ANY)
def tensor_split(at: Place, h: Tensor, axis: int) -> Tensor:
    cut = int(at.data.integers(h.shape[axis] + 1, 1))
    first, second = torch.tensor_split(h, [cut], axis)
    return torch.concat([second, first], axis)


@operation("torch.chunk", axis=EVEN)
def chunk(at: Place, h: Tensor, axis: int) -> Tensor:
    first, second = h.chunk(2, axis)
    extent = second.shape[axis]
    return first.narrow(axis, 0, extent) * second.sigmoid()


@operation("torch.unbind", "torch.stack", axis=ANY)
def unbind(at: Place, h: Tensor, axis: int) -> Tensor:
    return torch.stack(h.unbind(axis)[::-1], axis)


@operation("torch.narrow", axis=ANY)
def narrow(at: Place, h: Tensor, axis: int) -> Tensor:
    start = int(at.data.integers(h.shape[axis], 1))
    return h.narrow(axis, start, h.shape[axis] - start)


@operation("torch.repeat_interleave", axis=ANY)
def repeat_interleave(at: Place, h: Tensor, axis: int) -> Tensor:
    counts = 1 + at.data.integers(2, h.shape[axis])
    return h.repeat_interleave(counts, axis)


# By order


@operation("torch.sort", axis=ANY, descending=one_of(True, False))
def sort(at: Place, h: Tensor, axis: int, descending: bool) -> Tensor:
    return h.sort(axis, descending).values


@operation("torch.topk", axis=EVEN)
def topk(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.topk(2, axis).values


@operation("torch.kthvalue", axis=ANY)
def kthvalue(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.kthvalue(h.shape[axis], axis, keepdim=True).values


@operation("torch.median", axis=ANY)
def median(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.median(axis, keepdim=True).values


@operation("torch.flip", axis=ANY)
def flip(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.flip(axis)


@operation("torch.roll", axis=ANY, by=one_of(1, -1, 2))
def roll(at: Place, h: Tensor, axis: int, by: int) -> Tensor:
    return h.roll(by, axis)


@operation("torch.rot90", axes=PAIR)
def rot90(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    return h.rot90(1, axes)


# By masks


@operation("torch.masked_fill")
def masked_fill(at: Place, h: Tensor) -> Tensor:
    return h.masked_fill(at.data.mask(*h.shape), 0.5)


@operation("torch.where", axis=ANY)
def where(at: Place, h: Tensor, axis: int) -> Tensor:
    return torch.where(at.data.mask(*h.shape), h, h.flip(axis).tanh())


@operation("torch.masked_select", "torch.masked_scatter")
def masked_scatter(at: Place, h: Tensor) -> Tensor:
    mask = at.data.mask(*h.shape)
    return torch.zeros_like(h).masked_scatter(mask, h.masked_select(mask))


@operation("torch.tril", axes=PAIR)
def tril(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    return h.movedim(axes, (-2, -1)).tril().movedim((-2, -1), axes)


# By matrices of the data


@operation("F.one_hot", "torch.matmul(data, h)", axis=ANY, groups=GROUPS)
def pool_by_one_hot(at: Place, h: Tensor, axis: int, groups: int) -> Tensor:
    matrix = F.one_hot(at.data.integers(groups, h.shape[axis]), groups).to(h)
    folded, back = fold(h, axis)
    return back((matrix.T @ folded.T).T)


@operation("torch.matmul(data, h)", axis=ANY)
def matrix_along(at: Place, h: Tensor, axis: int) -> Tensor:
    """As a graph convolution multiplies with its adjacency matrix."""
    extent = h.shape[axis]
    return torch.tensordot(at.data.normal(extent, extent) / extent, h, ([1], [axis])).movedim(0, axis)


@operation("torch.sparse.mm", axis=ANY)
def sparse_matrix_along(at: Place, h: Tensor, axis: int) -> Tensor:
    extent = h.shape[axis]
    adjacency = (at.data.normal(extent, extent) * at.data.mask(extent, extent)).to_sparse()
    folded, back = fold(h, axis)
    return back(torch.sparse.mm(adjacency, folded.T).T)


# By shape


@operation("torch.cat", axis=ANY)
def cat_with_itself(at: Place, h: Tensor, axis: int) -> Tensor:
    return torch.cat([h, h.tanh()], axis)


@operation("torch.cat", axis=ANY)
def one_by_one(at: Place, h: Tensor, axis: int) -> Tensor:
    """Each slice alone, as with `torch.cat([model(row[None]) for row in x])`."""
    weight = at.parameter("weight", 1)
    return torch.cat([(weight * h.narrow(axis, i, 1)).tanh() for i in range(h.shape[axis])], axis)


@operation("torch.stack", dims=(1, 4), axis=ANY)
def stack(at: Place, h: Tensor, axis: int) -> Tensor:
    return torch.stack([h, h.sin()], axis)


@operation("torch.permute", dims=(2, 6), axes=PAIR)
def permute(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    order = [axis for axis in range(h.dim()) if axis not in axes]
    return h.permute(*axes, *order)


@operation("torch.transpose", axes=PAIR)
def transpose(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    return h.transpose(*axes)


@operation("torch.movedim", axes=PAIR)
def movedim(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    return h.movedim(*axes)


@operation("torch.flatten", dims=(2, 6), axis=ANY)
def flatten(at: Place, h: Tensor, axis: int) -> Tensor:
    first = min(axis, h.dim() - 2)
    return h.flatten(first, first + 1)


@operation("torch.unflatten", dims=(1, 4), axis=Axes(("fixed",), smallest=2))
def unflatten(at: Place, h: Tensor, axis: int) -> Tensor:
    extent = h.shape[axis]
    return h.unflatten(axis, (2, -1) if extent % 2 == 0 else (1, extent))


@operation("torch.reshape", axes=PAIR)
def reshape_swapping(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    """The elements of two axes dealt out anew: what lay along one lies across both."""
    folded, back = fold(h, *axes)
    return back(folded.reshape(folded.shape[0], folded.shape[2], folded.shape[1]).transpose(1, 2))


@operation("Tensor.view", dims=(2, 6))
def view_merging(at: Place, h: Tensor) -> Tensor:
    return h.contiguous().view(-1, h.shape[-1])


@operation("torch.ravel", dims=(2, 6))
def ravel(at: Place, h: Tensor) -> Tensor:
    return h.ravel()


@operation("torch.unsqueeze", dims=(1, 4), axis=ANY)
def unsqueeze(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.unsqueeze(axis)


@operation("torch.squeeze", dims=(2, 6), axis=Axes(("fixed",), largest=1))
def squeeze(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.squeeze(axis)


@operation("torch.select", dims=(2, 6), axis=ANY)
def select(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.select(axis, int(at.data.integers(h.shape[axis], 1)))


@operation("Tensor.__getitem__(slice)", axis=EVEN, step=one_of(1, 2))
def slices(at: Place, h: Tensor, axis: int, step: int) -> Tensor:
    moved = h.movedim(axis, 0)
    return moved[int(at.data.integers(2, 1)) :: step].movedim(0, axis)


@operation("Tensor.expand", dims=(1, 4), count=GROUPS)
def expand(at: Place, h: Tensor, count: int) -> Tensor:
    return h.unsqueeze(0).expand(count, *h.shape)


@operation("Tensor.repeat", axis=ANY)
def repeat(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.repeat([2 if dim == axis else 1 for dim in range(h.dim())])


@operation("torch.tile", axis=ANY)
def tile(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.tile([2 if dim == axis else 1 for dim in range(h.dim())])


@operation("torch.broadcast_to", "torch.mul", axis=ANY)
def broadcast_product(at: Place, h: Tensor, axis: int) -> Tensor:
    return torch.broadcast_to(h.narrow(axis, 0, 1), h.shape) * h


@operation("F.pad", axis=ANY, mode=one_of("constant", "replicate", "circular"))
def pad(at: Place, h: Tensor, axis: int, mode: str) -> Tensor:
    folded, back = fold(h, axis)
    return back(F.pad(folded, (1, 0), mode=mode))


@operation("Tensor.unfold", dims=(1, 4), axis=EVEN)
def unfold(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.unfold(axis, 2, 1)


@operation("F.unfold", "F.fold", axes=Axes(("any", "any"), smallest=2))
def image_patches(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    size = folded.shape[1:]
    patches = F.unfold(folded.unsqueeze(1), (2, 2)).tanh()
    return back(F.fold(patches, size, (2, 2)).squeeze(1))


@operation("torch.diagonal", axes=PAIR)
def diagonal(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    return h.diagonal(0, *axes)


@operation("torch.diag_embed", dims=(1, 3))
def diag_embed(at: Place, h: Tensor) -> Tensor:
    return h.diag_embed()


@operation("torch.as_strided", dims=(1, 4))
def as_strided(at: Place, h: Tensor) -> Tensor:
    """Overlapping windows of two."""
    flat = h.contiguous().flatten()
    return torch.cat([flat, flat[:1]]).as_strided((flat.numel(), 2), (1, 1))


@operation("torch.select_scatter", axis=ANY)
def select_scatter(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.select_scatter(h.select(axis, 0).tanh(), axis, h.shape[axis] - 1)


@operation("torch.slice_scatter", axis=EVEN)
def slice_scatter(at: Place, h: Tensor, axis: int) -> Tensor:
    return h.slice_scatter(h.narrow(axis, 0, 1), axis, 1, 2)


@operation("F.pixel_shuffle", axes=Axes(("any", "any", "any")))
def pixel_shuffle(at: Place, h: Tensor, axes: tuple[int, int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    factors = folded.new_tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    return back(F.pixel_shuffle(folded[:, :1] * factors, 2))


@operation("F.channel_shuffle", axes=Axes(("fixed", "any"), smallest=2))
def channel_shuffle(at: Place, h: Tensor, axes: tuple[int, int]) -> Tensor:
    folded, back = fold(h, *axes)
    return back(F.channel_shuffle(folded, folded.shape[1]))


@operation("torch.kron", dims=(1, 3), axis=FIXED)
def kron(at: Place, h: Tensor, axis: int) -> Tensor:
    folded, back = fold(h, axis)
    return back(torch.kron(folded.contiguous(), folded.new_tensor([[1.0, -0.5]])))
