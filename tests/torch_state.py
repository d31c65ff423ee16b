"""What torch holds of a capture, for tests that it is gone: torch has no public way to ask."""

from __future__ import annotations

from torch import nn
from torch.overrides import _get_current_function_mode_stack


def count_hooks(*modules: nn.Module) -> int:
    """Return the number of hooks on the modules, on those inside them and on their parameters."""
    hooks = 0
    for module in {inner for outer in modules for inner in outer.modules()}:
        hooks += len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._forward_hooks_always_called)  # noqa: SLF001
        for parameter in module.parameters(recurse=False):
            hooks += len(parameter._backward_hooks or ()) + len(parameter._post_accumulate_grad_hooks or ())  # noqa: SLF001
    return hooks


def function_modes() -> list[object]:
    """Return the function modes that are active in this thread."""
    return list(_get_current_function_mode_stack())
