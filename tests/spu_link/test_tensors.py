"""Tensors on their way to the host."""

from __future__ import annotations

import pytest
import torch

from spu_link.wire.tensors import copy_to_host


def test_what_is_there_already_is_not_copied() -> None:
    there, strided = torch.arange(6.0, requires_grad=True), torch.arange(6.0).view(2, 3).T
    first, second = copy_to_host([there, strided])
    assert first.data_ptr() == there.data_ptr()
    assert not first.requires_grad
    assert second.is_contiguous()
    assert torch.equal(second, strided)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_what_a_gpu_holds_arrives_in_pinned_memory() -> None:
    tensors = [torch.randn(3, 4), torch.arange(5)]
    arrived = copy_to_host([tensor.cuda() for tensor in tensors])
    for one, other in zip(arrived, tensors, strict=True):
        assert one.is_pinned()
        assert torch.equal(one, other)
