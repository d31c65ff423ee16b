"""The names of the package load what they need when they are first used."""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import host_client
from host_client import curvature
from spu_link import errors, operators


@pytest.mark.parametrize("name", host_client.__all__)
def test_each_name_is_what_it_is_called(name: str) -> None:
    assert getattr(host_client, name).__name__ == name


EXCEPTIONS = [
    (module, name)
    for module in (curvature, errors)
    for name, value in vars(module).items()
    if inspect.isclass(value) and issubclass(value, Exception) and name not in ("LogUnusable", "NotInLog")
]


@pytest.mark.parametrize(("module", "name"), [*EXCEPTIONS, *((operators, name) for name in operators.__all__)])
def test_errors_warnings_and_operators_are_shown_by_completion(module: ModuleType, name: str) -> None:
    assert name in dir(host_client)
    assert getattr(host_client, name) is getattr(module, name)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        host_client.Nothing  # noqa: B018


def test_the_package_alone_does_not_import_torch() -> None:
    subprocess.run([sys.executable, "-c", "import host_client, sys; assert 'torch' not in sys.modules"], check=True)
