"""A forked child makes a client of its own, and leaves that of its parent alone."""

from __future__ import annotations

import copy
import pickle

import pytest

from host_client import connect

PARENT = """
import time

A, B = torch.ones(1, 3), torch.ones(3)
OPTIONS = {"clock": "stepped"} if ADDRESS == "inproc:" else {}


def solved(session):
    return session.solve(Rows(A), B, damping=1.0, analog_time=50.0).value


def right(value):
    return torch.allclose(value, torch.full((3,), 0.25), atol=1e-6)


def in_child(work):
    # Returns the exit code of a child that exits as any program does.
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        work()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""

ADDRESSES = pytest.mark.parametrize("address", ["unix:", "inproc:"])


def run(zygote, code, address, stepped):
    ended = zygote.run(PARENT + code, ADDRESS=stepped.address if address == "unix:" else address)
    assert ended.err == "", ended.err
    assert ended.code == 0


@ADDRESSES
def test_a_child_computes_though_its_parent_has_computed_with_several_threads(zygote, stepped, address):
    code = """
torch.set_num_threads(2)
LARGE = torch.randn(300, 400, dtype=torch.float64)


def product():
    return (LARGE @ LARGE.T).tanh().sum()  # torch waits for threads of the parent where it computes with several


def work():
    assert torch.isclose(product(), expected)
    with connect(ADDRESS, timeout=20.0, **OPTIONS) as spu, spu.session() as session:
        solution = session.solve(Rows(LARGE), torch.ones(400, dtype=torch.float64), damping=1.0, analog_time=50.0)
        assert solution.value.isfinite().all()


expected = product()
with connect(ADDRESS, timeout=20.0, **OPTIONS):
    pass
assert in_child(work) == 0
"""
    run(zygote, code, address, stepped)


@ADDRESSES
def test_a_child_connects_anew_though_its_parent_has_used_the_client(zygote, stepped, address):
    code = """
def work():
    with connect(ADDRESS, timeout=20.0, **OPTIONS) as spu, spu.session() as session:
        assert right(solved(session))

def twice():
    work()
    assert in_child(work) == 0  # a grandchild
    work()

with connect(ADDRESS, timeout=20.0, **OPTIONS) as spu:
    with spu.session() as session:
        assert right(solved(session))
    assert in_child(twice) == 0
    with spu.session() as session:
        assert right(solved(session))
assert in_child(work) == 0
"""
    run(zygote, code, address, stepped)


@ADDRESSES
def test_a_child_leaves_alone_what_nobody_refers_to_in_its_parent(zygote, stepped, address):
    code = """
from contextlib import suppress

def work():
    gc.collect()
    with connect(ADDRESS, timeout=20.0, **OPTIONS) as spu, spu.session() as session:
        assert right(solved(session))

gc.disable()  # a call that has not ended in time leaves references in a circle
with connect(ADDRESS, timeout=20.0, **OPTIONS) as spu, spu.session() as session, suppress(DeadlineExceeded):
    session.read(at=1e12, timeout=0.05)
del spu, session
assert in_child(work) == 0
"""
    run(zygote, code, address, stepped)


def test_a_child_has_a_device_of_its_own_though_that_of_its_parent_is_computing_meanwhile(zygote, stepped):
    code = """
import threading

A, B = torch.randn(200, 20_000), torch.ones(20_000)  # its Gram matrix takes some milliseconds

def compute():
    while not done.is_set():
        session.solve(Rows(A), B, damping=1.0, analog_time=1.0)

def work():
    for _ in range(6):  # so that no thread has the identity of one of the parent's
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        value = session.solve(Rows(torch.ones(1, 3)), torch.ones(3), damping=1.0, analog_time=50.0).value
        assert right(value)

done = threading.Event()
with connect("inproc:", clock="stepped") as spu, spu.session() as session:
    computing = threading.Thread(target=compute)
    computing.start()
    try:
        for _ in range(4):
            assert in_child(work) == 0
    finally:
        done.set()
        computing.join()
"""
    run(zygote, code, "inproc:", stepped)


@ADDRESSES
def test_what_a_child_inherits_raises_at_once_and_says_what_to_do(zygote, stepped, address):
    code = """
import asyncio, pickle

spu = connect(ADDRESS, timeout=20.0, **OPTIONS)
session = spu.open_session()
model, criterion = nn.Linear(3, 2), nn.CrossEntropyLoss()
optimizer = TNGD(model, criterion, session, lr=0.1, damping=0.1, analog_time=5.0)
feed, upload = session.feed(), session.upload(Rows(A))
aio_session, aio_spu = session.aio, spu.aio

def step():
    criterion(model(torch.ones(4, 3)), torch.zeros(4, dtype=torch.long)).backward()
    optimizer.step()

def loaded():
    optimizer.load_state_dict(optimizer.state_dict())

step()
loss = criterion(model(torch.ones(4, 3)), torch.zeros(4, dtype=torch.long))
CALLS = [
    lambda: spu.info, lambda: spu.report(), lambda: spu.halt(), lambda: spu.open_session(), lambda: spu.address,
    lambda: session.program(Rows(A), B), lambda: solved(session), lambda: session.read(), lambda: session.advance(1.0),
    lambda: session.save_state(), lambda: session.restore_state(b""), lambda: session.upload(Rows(A)),
    lambda: session.feed(), lambda: session.device_time,
    lambda: upload.program(B), lambda: feed.abandon(), lambda: feed.wait_back(1.0), lambda: feed.lost,
    step, lambda: (loss.backward(), optimizer.step()), loaded,
    lambda: session.aio, lambda: asyncio.run(aio_session.read()), lambda: asyncio.run(aio_spu.info()),
    lambda: asyncio.run(aio_spu.open_session()),
]

def work():
    for number, call in enumerate(CALLS):
        begun = time.monotonic()
        try:
            call()
        except WrongProcess as error:
            assert "connect()" in str(error) and str(os.getppid()) in str(error), error
        else:
            sys.exit(f"call {number} did not raise")
        assert time.monotonic() - begun < 5.0
    for one in (upload, feed, session, spu):
        one.close()  # of the parent: nothing happens

assert in_child(work) == 0
upload.abandon()
step()
spu.close()
"""
    run(zygote, code, address, stepped)


@ADDRESSES
def test_the_end_of_a_child_does_not_disturb_its_parent(zygote, stepped, address):
    code = """
from contextlib import ExitStack

def kept_until_its_exit():
    pass

def dropped_and_collected():
    global spu, session, optimizer, stack
    del spu, session, optimizer, stack
    gc.collect()

def unwound():
    with stack:
        raise SystemExit(0)

A, B = torch.ones(20, 20_000), torch.ones(20_000)  # goes through shared memory
model, criterion = nn.Linear(3, 2), nn.CrossEntropyLoss()
stack = ExitStack()
spu = stack.enter_context(connect(ADDRESS, timeout=20.0, **OPTIONS))
session = stack.enter_context(spu.session(ttl=2.0))
optimizer = TNGD(model, criterion, session, lr=0.1, damping=0.1, analog_time=5.0)
begun = time.monotonic()
for work in (kept_until_its_exit, dropped_and_collected, unwound):
    expected = solved(session)
    ahead = session.upload(Rows(A))
    assert in_child(work) == 0, work
    assert torch.allclose(ahead.solve(B, damping=1.0, analog_time=50.0).value, expected)
    criterion(model(torch.ones(4, 3)), torch.zeros(4, dtype=torch.long)).backward()
    optimizer.step()
while time.monotonic() < begun + 2.5:
    time.sleep(0.1)  # the session lives by its heartbeat
solved(session)
stack.close()
"""
    run(zygote, code, address, stepped)


def test_a_child_that_uses_nothing_exits_as_if_there_were_no_client(zygote, stepped):
    code = """
spu = connect(ADDRESS, timeout=20.0)
session = spu.open_session()
for _ in range(20):
    assert in_child(lambda: None) == 0
assert right(solved(session))
"""
    run(zygote, code, "unix:", stepped)


def test_copies_are_refused():
    with connect("inproc:", clock="stepped") as spu, spu.session() as session:
        for one in (session, spu, session.feed()):
            for copied in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match=r"call connect\(\) where it is needed"):
                    copied(one)
