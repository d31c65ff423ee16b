"""The names of the package load what they need when they are first used."""

import subprocess
import sys

import pytest

import host_client
from host_client import curvature

ERRORS = [name for name in curvature.__all__ if name.startswith(("Unsupported", "Curvature"))]


@pytest.mark.parametrize("name", host_client.__all__)
def test_each_name_is_what_it_is_called(name: str) -> None:
    assert getattr(host_client, name).__name__ == name


@pytest.mark.parametrize("name", [*ERRORS, "PerSampleLoss"])
def test_the_errors_and_warnings_of_the_curvature_are_exported(name: str) -> None:
    assert name in host_client.__all__
    assert getattr(host_client, name) is getattr(curvature, name)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        host_client.Nothing  # noqa: B018


def test_the_package_alone_does_not_import_torch() -> None:
    subprocess.run([sys.executable, "-c", "import host_client, sys; assert 'torch' not in sys.modules"], check=True)
