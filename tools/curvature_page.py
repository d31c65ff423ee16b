"""The tables of docs/curvature.md, from the code of `host_client.curvature`.

Rows come from

- functions: `host_client.curvature.rules.RULES`, the docstrings of each rule's `follow`, and captures of small models
  that show how the rows of their parameters are held;
- losses: `host_client.curvature.losses.registry.LOSSES`, the docstrings of their calls, and small calls of each;
- refusals, warnings: the messages at all ``raise`` and ``warnings.warn`` statements of the package, whose part after
  the last semicolon is the remedy.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host_client import curvature as package
from host_client.curvature import Capture, CurvatureFallback, Kind, PerSampleLoss, UnsupportedCriterion
from host_client.curvature.errors import CurvatureTooLarge
from host_client.curvature.losses import check_criterion, loss_call
from host_client.curvature.losses.opaque import Opaque
from host_client.curvature.losses.per_sample import PerSampleCall
from host_client.curvature.losses.registry import LOSSES
from host_client.curvature.rules import RULES, Rule
from tools.pages import escaped, sentence, table

PAGE = "curvature.md"
SOURCES = Path(inspect.getfile(package)).parent

INTERNAL = frozenset({"AssertionError", "NotImplementedError"})
"""Errors that no caller sees, unless this package is wrong."""


# Functions


class Example(nn.Module):
    """A model whose one parameter is used by one function.

    Args:
        shape: of the parameter.
        use: from the parameter and the input.
    """

    def __init__(self, shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.ones(shape))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, one row a sample."""
        return self.use(self.parameter, x).flatten(1)


class Case(NamedTuple):
    """A use of a parameter.

    Attributes:
        use: from the parameter and the input.
        shapes: of parameter and input, one pair or several of different sizes.
    """

    use: Callable[[Tensor, Tensor], Tensor]
    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


EXAMPLES = {
    "AddBackward0": Case(lambda p, x: x + p, (((6,), (4, 6)),)),
    "SubBackward0": Case(lambda p, x: x - p, (((6,), (4, 6)),)),
    "MulBackward0": Case(lambda p, x: x * p, (((6,), (4, 6)),)),
    "ExpandBackward0": Case(lambda p, x: p.expand(4, 6), (((6,), (4, 6)),)),
    "RepeatBackward0": Case(lambda p, x: p.repeat(4).view(4, 6), (((6,), (4, 6)),)),
    "NativeLayerNormBackward0": Case(lambda p, x: F.layer_norm(x, (6,), p), (((6,), (4, 6)),)),
    "NativeGroupNormBackward0": Case(lambda p, x: F.group_norm(x, 2, p), (((6,), (4, 6, 3)),)),
    "NativeBatchNormBackward0": Case(
        lambda p, x: F.batch_norm(x, torch.zeros(6), torch.ones(6), p), (((6,), (4, 6, 3)),)
    ),
    "MmBackward0": Case(lambda p, x: x @ p, (((6, 50), (4, 6)), ((2, 1), (4, 2)))),
    "AddmmBackward0": Case(lambda p, x: F.linear(x, p, torch.zeros(len(p))), (((50, 6), (4, 6)), ((1, 2), (4, 2)))),
    "BmmBackward0": Case(lambda p, x: torch.einsum("bi,ij->bj", x, p), (((6, 50), (4, 6)), ((2, 1), (4, 2)))),
    "ConvolutionBackward0": Case(
        lambda p, x: F.conv2d(x, p), (((12, 8, 3, 3), (4, 8, 4, 4)), ((1, 1, 2, 2), (4, 1, 6, 6)))
    ),
    "EmbeddingBackward0": Case(
        lambda p, x: F.embedding(x.abs().long() % len(p), p), (((50, 6), (4, 2)), ((2, 1), (4, 6)))
    ),
}
"""By the node of a rule that has forms."""

ON_A_GPU = {
    "CudnnBatchNormBackward0": "NativeBatchNormBackward0",
    "FusedRmsNormBackward0": "NativeLayerNormBackward0",
}
"""Nodes that a graph has on a GPU alone, and those whose rows are held alike on every machine."""

WITHOUT = frozenset({"BaddbmmBackward0"})
"""Nodes of rules that have forms for other functions only."""


def functions_table() -> str:
    """Return the functions through which samples are followed, by kind of rule."""
    groups: dict[type[Rule], list[str]] = {}
    for name, rule in RULES.items():
        groups.setdefault(_followed_by(type(rule)), []).append(name)
    rows = []
    for kind, names in groups.items():
        follow = sentence(kind.follow.__doc__).removeprefix("Follow samples ")
        shown = sorted({re.sub(r"Backward\d*$", "", name) for name in names})
        rows.append((", ".join(f"`{name}`" for name in shown), follow, _held(kind, names)))
    return table(
        ("functions, by the name of the node without `Backward0`", "samples are followed", "rows held as"), rows
    )


def _followed_by(kind: type[Rule]) -> type[Rule]:
    """Return the class that says how samples are followed, for a class that only adds forms."""
    return next(base for base in kind.__mro__ if "follow" in base.__dict__)


def _held(kind: type[Rule], names: list[str]) -> str:
    """Return the forms in which parameters of some functions are held; all that have one are tried."""
    forms: dict[str, list[str]] = {}
    for name in sorted({re.sub(r"\d$", "0", name) for name in names} & set(RULES)):
        found = held_as(name) if type(RULES[name]).operation is not Rule.operation else []
        forms.setdefault(" or ".join(f"`{form}`" for form in found), []).append(f"`{name.removesuffix('Backward0')}`")
    without = forms.pop("", [])
    if not forms:
        return "–"
    return "; ".join(
        form if len(forms) == 1 and not without else f"{', '.join(some)}: {form}" for form, some in forms.items()
    )


def held_as(name: str) -> list[str]:
    """Return the forms of a parameter that a function of this name uses, from captures with many columns and with one.

    Raises:
        LookupError: for a function without an example.
        RuntimeError: for an example that does not use the function, or has no form.
    """
    name = ON_A_GPU.get(name, name)
    if name in WITHOUT:
        return []
    if name not in EXAMPLES:
        raise LookupError(f"{name} has a form, and tools/curvature_page.py has no example of it; add one to EXAMPLES")
    found: dict[str, None] = {}
    for (shape, batch), kind in itertools.product(EXAMPLES[name].shapes, ("exact", "mc")):
        model, criterion = Example(shape, EXAMPLES[name].use), nn.MSELoss()
        capture = Capture(model, criterion, curvature=kind)
        output = model(torch.arange(1.0, 1 + math.prod(batch)).reshape(batch).sin())
        if name not in _nodes(output.grad_fn):
            raise RuntimeError(f"the example of {name} does not use it")
        with warnings.catch_warnings():
            warnings.simplefilter("error", CurvatureFallback)
            criterion(output, torch.zeros_like(output))
        found |= {type(layer).__name__: None for layer in capture.operator.layers}
        capture.close()
    return sorted(found)


def _nodes(node: Any) -> set[str]:
    todo, found = [node], set()
    while todo:
        node = todo.pop()
        found.add(node.name())
        todo += [argument for argument, _ in node.next_functions if argument is not None]
    return found


# Losses


def losses_table() -> str:
    """Return the losses with the columns and kinds of their curvature."""
    rows = []
    for function, (module, call) in LOSSES.items():
        criterion = module()
        kinds = [kind for kind in get_args(Kind) if _accepted(criterion, kind)]
        rows.append(
            (
                f"`nn.{module.__name__}`, `F.{function.__name__}`",
                _element(call),
                _columns(criterion) if "exact" in kinds else "–",
                ", ".join(f"`{name}`" for name in _curved(criterion)) if "exact" in kinds else "–",
                _kinds(kinds),
            )
        )
    kinds = [kind for kind in get_args(Kind) if _accepted(_Squared(), kind)]
    size = f"{_ranks(_Squared())[0] // 5} for each entry of a sample"
    rows.append(("your own, from `PerSampleLoss`", _element(PerSampleCall), size, "`output`", _kinds(kinds)))
    kinds = [kind for kind in get_args(Kind) if _accepted(_Other(), kind)]
    rows.append(("any other module", sentence(Opaque.__doc__).partition(": ")[2], "–", "–", _kinds(kinds)))
    return table(("criterion", "elements", 'columns of an element, `"exact"`', "curvature in", "`curvature=`"), rows)


class _Squared(PerSampleLoss):
    def per_sample(self, output: Tensor, target: Tensor, /) -> Tensor:
        return (output - target).square().sum(1)


class _Other(nn.Module):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()


def _element(call: type) -> str:
    return sentence(call.__doc__).partition(": ")[2]


def _accepted(criterion: nn.Module, kind: Kind) -> bool:
    try:
        check_criterion(criterion, kind)
    except UnsupportedCriterion:
        return False
    return True


def _kinds(kinds: list[Kind]) -> str:
    return "all" if len(kinds) == len(get_args(Kind)) else ", ".join(f'`"{kind}"`' for kind in kinds)


def _example(criterion: nn.Module, classes: int, graphs: tuple[str, ...]) -> Any:
    """Return a call of a loss with three samples of some classes, in which some arguments have graphs."""
    z = torch.linspace(0.1, 0.9, 3 * classes).view(3, classes)
    if isinstance(criterion, (nn.NLLLoss, nn.KLDivLoss)):
        z = z.log_softmax(1)
    target: Tensor = torch.zeros(3, dtype=torch.long)
    if not isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss)):
        target = torch.full((3, classes), 0.5)
    arguments = [z, target, torch.ones(3, classes)][: 3 if isinstance(criterion, nn.GaussianNLLLoss) else 2]
    for number, name in enumerate(("input", "target", "var")[: len(arguments)]):
        if name in graphs:
            arguments[number] = arguments[number].detach().requires_grad_() * 1
    return loss_call(criterion, tuple(arguments), {}, None)


def _ranks(criterion: nn.Module, graphs: tuple[str, ...] = ("input",)) -> tuple[int, int]:
    first, second = (_example(criterion, classes, graphs).rank("exact", 1) for classes in (5, 7))
    return first, second


def _columns(criterion: nn.Module) -> str:
    first, second = _ranks(criterion)
    found = str(first) if first == second else "d" if first == 5 else f"d − {5 - first}"
    if "var" in _curved(criterion):
        found += f", {_ranks(criterion, ('input', 'var'))[0]} with a variance that has a graph"
    return found


def _curved(criterion: nn.Module) -> list[str]:
    curved = _example(criterion, 5, ("input",)).curved
    return [name for name in ("input", "target", "var") if name in curved]


# Refusals


class Message(NamedTuple):
    """A message of an error or a warning, at the place where it is raised.

    Attributes:
        kind: the class.
        reason: the message up to the last semicolon; ``…`` stands for values.
        remedy: the rest.
        place: the file, and its line.
    """

    kind: str
    reason: str
    remedy: str
    place: str


def messages() -> Iterator[Message]:
    """Yield the messages of all errors that the package raises, and of its warnings.

    Raises:
        ValueError: for a message without a remedy.
    """
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            call = _raised(node)
            if call is None:
                continue
            kind = ast.unparse(call.func)
            if kind in INTERNAL:
                continue
            place = f"{path.relative_to(SOURCES)}:{node.lineno}"  # type: ignore[attr-defined]
            text = _text(kind, call)
            reason, separator, remedy = text.rpartition("; ")
            if not separator:
                raise ValueError(f"{place}: the message of {kind} has no remedy after a semicolon: {text!r}")
            yield Message(kind, reason, remedy, place)


def _raised(node: ast.AST) -> ast.Call | None:
    """Return the call that makes an error or a warning; None where there is none."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return node.exc
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
        if isinstance(node.args[0], ast.Call):
            return node.args[0]
        return ast.Call(node.args[1], [node.args[0]], [])
    return None


def _text(kind: str, call: ast.Call) -> str:
    """Return the message, as its class composes it."""
    if kind == CurvatureTooLarge.__name__:  # its message is counted
        return sentence(CurvatureTooLarge.__doc__)
    parts = [_template(argument) for argument in call.args]
    if kind == "UnsupportedLayer":
        return f"layer … {parts[1]}"
    if kind == "UnsupportedCriterion":
        return f"criterion.{parts[0]} {parts[1]}" if parts[0] else f"the criterion {parts[1]}"
    if kind == "CurvatureMismatch":
        return f"parameter … {parts[1]}"
    if kind in ("UnsupportedProcessGroup", "Diverged"):
        return _template(_own_message(kind))
    return parts[0]


def _own_message(kind: str) -> ast.expr:
    """Return the message that a class of errors.py composes itself, in ``__str__`` or for its base."""
    tree = ast.parse((SOURCES / "errors.py").read_text())
    of_class = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind)
    for node in ast.walk(of_class):
        if isinstance(node, ast.FunctionDef) and node.name == "__str__":
            return next(n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value is not None)
    return next(
        n.args[0] for n in ast.walk(of_class) if isinstance(n, ast.Call) and "super().__init__" in ast.unparse(n)
    )


def _template(node: ast.expr) -> str:
    """Return a string as it stands in the code, with ``…`` for values."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(value) if isinstance(value, ast.Constant) else "…" for value in node.values)
    return "…"


def refusals_table() -> str:
    """Return all errors with reason and remedy, by class."""
    return _table(lambda message: not _is_warning(message))


def warnings_table() -> str:
    """Return all warnings with reason and remedy, by class."""
    return _table(_is_warning)


def _is_warning(message: Message) -> bool:
    kind = getattr(package, message.kind, None)
    return isinstance(kind, type) and issubclass(kind, Warning)


def _table(chosen: Callable[[Message], bool]) -> str:
    rows = sorted({(f"`{m.kind}`", escaped(m.reason), escaped(m.remedy)) for m in messages() if chosen(m)})
    return table(("class", "reason", "remedy"), rows)


TABLES = {
    "functions": functions_table,
    "losses": losses_table,
    "refusals": refusals_table,
    "warnings": warnings_table,
}
