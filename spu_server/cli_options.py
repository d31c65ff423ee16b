"""What the programs `tngd` and `spu-server` share: their class, and options from the fields of a pydantic model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_origin

import typer
from annotated_types import Ge
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings
from typer.core import TyperGroup

from spu_link.terminal_text import write_plainly

F = TypeVar("F", bound=Callable[..., object])


class CommandGroup(TyperGroup):
    """A program of several commands that writes in the terminal's characters."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command that the arguments name."""
        write_plainly()
        return super().main(*arguments, **options)


def options_of(model: type[BaseModel], *first: str) -> Callable[[F], F]:
    """Return a decorator that replaces the ``**options`` of a command by one option for each field of a model.

    A field gives the option its name, type, default, minimum and, by its description, help; its ``json_schema_extra``
    has further arguments of `typer.Option`. A field with a `BeforeValidator` takes texts. The options stand between the
    positional parameters of the command and the keyword-only ones.

    Settings that can also come from a file or the environment have their default and their range there: the option
    shows the default, accepts every value of its type, and is None where it is not given.

    Args:
        model: the model.
        first: names of the fields whose options come before the others.
    """
    names = dict.fromkeys([*first, *model.model_fields])
    parameters = [_parameter(name, model.model_fields[name], issubclass(model, BaseSettings)) for name in names]

    def decorate(command: F) -> F:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        before = [parameter for parameter in own if parameter.kind is not parameter.KEYWORD_ONLY]
        command.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*before, *parameters, *own[len(before) :]]
        )
        return command

    return decorate


def explicit(context: typer.Context) -> set[str]:
    """Return the names of the options that the command line gives."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def checked(parse: Callable[[Any], object]) -> Callable[[typer.Context, typer.CallbackParam, Any], Any]:
    """Return a callback of typer that shows why a value cannot be parsed, and leaves a list of values as it is."""

    def check(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
        try:
            parsed = parse([] if value is None else value)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=parameter.opts[0]) from None
        return parsed if isinstance(value, str) else value

    return check


def _parameter(name: str, field: FieldInfo, layered: bool) -> inspect.Parameter:
    """Return the parameter of a command for a field; `layered`: the command line is one of several sources."""
    extra: dict[str, Any] = {"help": field.description, **(field.json_schema_extra or {})}  # type: ignore[dict-item]
    parsers: list[Any] = [one.func for one in field.metadata if isinstance(one, BeforeValidator)]
    if parsers:
        extra["callback"] = checked(parsers[0])
    kind: Any = str if parsers else field.annotation
    if get_origin(field.annotation) in (tuple, dict):
        kind = list[str]
    default = None if field.default_factory is not None else field.default
    if layered:
        extra.setdefault("show_default", "no" if default is False else str(default))
        default = None
    else:  # the other bounds are checked by the model
        extra |= {"min": bound.ge for bound in field.metadata if isinstance(bound, Ge)}  # noqa: B035 - there is one
    names = [f"--{name.replace('_', '-')}"] if kind is bool else []  # without a --no-…
    option = typer.Option(default, *names, **extra)
    annotation = kind | None if default is None else kind
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)
