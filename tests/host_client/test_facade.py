"""The blocking API is derived from the asynchronous one, with its documentation."""

import inspect

import pytest

from host_client import aio, connect, loop
from host_client.blocking import Feed, Session, Spu, Upload
from host_client.blocking.facade import Attribute

CLASSES = {Spu: aio.Spu, Session: aio.Session, Upload: aio.Upload, Feed: loop.Feed}


@pytest.mark.parametrize("facade", CLASSES)
def test_methods_have_the_arguments_and_the_documentation_of_the_asynchronous_ones(facade):
    for name, method in inspect.getmembers(facade, inspect.isfunction):
        original = getattr(CLASSES[facade], name, None)
        if name.startswith("_") or original is None:
            continue
        assert list(inspect.signature(method).parameters) == list(inspect.signature(original).parameters)
        assert method.__doc__
        assert "await" not in method.__doc__
        assert not inspect.iscoroutinefunction(method)


@pytest.mark.parametrize("facade", CLASSES)
def test_attributes_are_documented_and_read_only(facade):
    attributes = {name: value for name, value in vars(facade).items() if isinstance(value, Attribute)}
    assert attributes
    for name, attribute in attributes.items():
        assert attribute.__doc__ != Attribute.__doc__
        assert attribute.__doc__.endswith(".")
        with pytest.raises(AttributeError, match="no setter"):
            setattr(facade.__new__(facade), name, None)


def test_the_example_of_an_upload_is_that_of_the_blocking_api():
    assert "    with session.upload(operator) as upload:\n" in Session.upload.__doc__
    assert "    reading = upload.solve(" in Session.upload.__doc__


def test_attributes_are_those_of_the_asynchronous_object():
    with connect("inproc:", clock="stepped", embedding="sample") as spu, spu.session() as session:
        assert session.aio.spu is spu.aio
        assert session.spu is spu
        assert session.clock is session.aio.clock
        assert session.embedding is spu.embedding is spu.aio.embedding
        assert session.capacity == session.aio.capacity
