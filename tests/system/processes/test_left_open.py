"""Whatever is dropped, closed or broken off in whatever way leaves nothing open, and nothing is printed at the exit."""

from __future__ import annotations

import pytest

TRAINING = """
import asyncio, _thread, threading, time
from contextlib import suppress

OPTIONS = {"clock": "stepped"} if ADDRESS == "inproc:" else {}
A, B = torch.ones(20, 20_000), torch.ones(20_000)  # goes through shared memory
DESCRIPTORS = "/proc/self/fd"


def connected():
    return connect(ADDRESS, timeout=20.0, **OPTIONS)


def training(session, **options):
    model, criterion = nn.Linear(3, 2), nn.CrossEntropyLoss()
    return model, criterion, TNGD(model, criterion, session, lr=0.1, damping=0.1, analog_time=5.0, **options)


def step(model, criterion, optimizer):
    criterion(model(torch.ones(4, 3)), torch.zeros(4, dtype=torch.long)).backward()
    optimizer.step()
    optimizer.zero_grad()


def eventually(fact):
    end = time.monotonic() + 20.0
    while not fact():
        assert time.monotonic() < end, (threading.enumerate(), os.listdir(DESCRIPTORS))
        time.sleep(0.02)


def left():
    # The threads that copy for the client's event loop stay with it.
    gc.collect()
    threads = {thread.name.partition("-")[0] for thread in threading.enumerate()} - {"asyncio_0", "asyncio_1"}
    return threads, len(os.listdir(DESCRIPTORS))


def check():
    # The device is free, threads and descriptors are as after a connection that was used and closed.
    # One that gRPC was still closing then may have been counted.
    eventually(lambda: left()[0] == before[0] and left()[1] <= before[1])
    with connected() as spu, spu.session():
        pass


with connected() as spu, spu.session() as session:
    session.solve(Rows(A), B, damping=1.0, analog_time=1.0)
del spu, session
gc.collect()
before = left()
"""

ENDS = {
    "dropped after a step": """
def use():
    spu = connected()
    session = spu.open_session()
    trained = training(session, record=lambda event: None)
    step(*trained)
    session.solve(Rows(A), B, damping=1.0, analog_time=1.0)
use()
check()
""",
    "dropped by one whose method records the events": """
class Run:
    def __init__(self):
        self.spu = connected()
        self.session, self.events = self.spu.open_session(), []
        self.trained = training(self.session, record=self.note)

    def note(self, event):
        self.events.append(event)

def use():
    run = Run()
    step(*run.trained)
    assert run.events
use()
check()
""",
    "an optimizer that is dropped, then its session": """
spu = connected()
session = spu.open_session()
trained = training(session)
step(*trained)
model, criterion, optimizer = trained
del trained, optimizer
gc.collect()
from tests.torch_state import count_hooks
assert not count_hooks(model, criterion)
step(*training(session))
del session
eventually(lambda: spu.info.session_holder is None)
del spu
check()
""",
    "feeds and uploads that are dropped": """
def use(session):
    session.feed()
    session.upload(Rows(A))
    feed = session.feed()
    with suppress(SpuError):
        feed.wait_back(0.1)
spu = connected()
session = spu.open_session()
use(session)
gc.collect()
session.solve(Rows(A), B, damping=1.0, analog_time=1.0)
session.close()
spu.close()
check()
""",
    "closed twice, and in any order": """
for order in ((0, 1), (1, 0), (0, 0, 1, 1), (1, 1, 0, 0)):
    spu = connected()
    session = spu.open_session()
    trained = training(session)
    step(*trained)
    for index in order:
        (session, spu)[index].close()
    trained[2].close()
    trained[2].close()
    del spu, session, trained
check()
""",
    "a step after the session is closed": """
with connected() as spu:
    for policy in ("raise", "wait", "digital", "gradient"):
        with spu.session() as session:
            trained = training(session, on_loss=policy, freshness="newest" if policy == "digital" else "program")
            step(*trained)
        begun = time.monotonic()
        for _ in range(2):
            try:
                step(*trained)
            except SessionClosed as error:
                assert "open a new session" in str(error)
            else:
                sys.exit(policy)
        assert time.monotonic() - begun < 10.0
        with spu.session() as session:
            trained[2].session = session
            step(*trained)
del spu, session, trained
check()
""",
    "closed during a step, from another thread": """
for close_connection in (False, True):
    spu = connected()
    session = spu.open_session()
    trained = training(session, period=1e6) if ADDRESS != "inproc:" else training(session)
    reading = threading.Event()
    def waiting():
        reading.set()
        try:
            session.read(at=1e9, timeout=60.0)
        except (SessionExpired, DeviceUnavailable):
            pass
    thread = threading.Thread(target=waiting)
    thread.start()
    reading.wait()
    begun = time.monotonic()
    (spu if close_connection else session).close()
    thread.join()
    assert time.monotonic() - begun < 10.0
    try:
        step(*trained)
    except SessionClosed:
        pass
    spu.close()
    del spu, session, trained
check()
""",
    "interrupted by Ctrl-C": """
import signal, sys
# Python itself prints an interrupt that comes in a weak reference's callback, and drops it.
sys.unraisablehook = lambda said: None if said.exc_type is KeyboardInterrupt else sys.__unraisablehook__(said)
signal.signal(signal.SIGINT, signal.default_int_handler)
for delay in (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        with connected() as spu, spu.session(ttl=1.0) as session:
            trained = training(session)
            begun = time.monotonic()
            while time.monotonic() < begun + 1.0:  # Python drops an interrupt that comes in a weak reference's callback
                step(*trained)
    except (KeyboardInterrupt, DeviceBusy):
        pass  # busy for the time to live at most, if the answer to a request for a session was given up
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
spu = session = trained = None
eventually(lambda: connected().info.session_holder is None)
check()
""",
    "asynchronous calls that are cancelled": """
async def use():
    asyncio.get_running_loop().slow_callback_duration = 60.0  # nothing is to be said of a machine with too much to do
    async with await aio.connect(ADDRESS, timeout=20.0, **OPTIONS) as spu, spu.session() as session:
        calls = [session.solve(Rows(A), B, damping=1.0, analog_time=1.0), session.read(at=1e9), spu.info(),
                 session.program(Rows(A), B, not_before=1e9)]
        tasks = [asyncio.create_task(call) for call in calls]
        for _ in range(50):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await session.solve(Rows(A), B, damping=1.0, analog_time=1.0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
asyncio.run(use())

async def use():  # a task that is cancelled in the middle of everything
    async def work():
        async with await aio.connect(ADDRESS, timeout=20.0, **OPTIONS) as spu, spu.session() as session:
            while True:
                await session.solve(Rows(A), B, damping=1.0, analog_time=1.0)
                enough.set()
    asyncio.get_running_loop().slow_callback_duration = 60.0
    enough = asyncio.Event()
    task = asyncio.create_task(work())
    await enough.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
asyncio.run(use())
gc.collect()
with connected() as spu, spu.session():
    pass
""",
    "nothing is closed before the exit": """
spu = connected()
session = spu.open_session()
trained = training(session, record=lambda event: None)
step(*trained)
upload, feed = session.upload(Rows(A)), session.feed()
""",
    "an exit in the middle of a call": """
def forever():
    with suppress(SpuError):
        session.read(at=1e9)
spu = connected()
session = spu.open_session()
trained = training(session)
step(*trained)
threading.Thread(target=forever, daemon=True).start()
criterion = trained[1]
criterion(trained[0](torch.ones(4, 3)), torch.zeros(4, dtype=torch.long)).backward()
""",
    "closed by a handler of the exit": """
import atexit
spu = connected()
atexit.register(lambda: spu.close())
""",
    "an error that nobody catches": """
try:
    with connected() as spu, spu.session() as session:
        trained = training(session)
        step(*trained)
        raise ZeroDivisionError
except ZeroDivisionError as error:
    kept = error
session.close()
""",
    "blocking calls within a running event loop": """
async def cell():
    asyncio.get_running_loop().slow_callback_duration = 60.0  # in debug mode it reports slow cells
    spu = connected()
    session = spu.open_session()
    trained = training(session)
    step(*trained)
    return spu, session, trained
kept = asyncio.run(cell())
async def next_cell():
    asyncio.get_running_loop().slow_callback_duration = 60.0
    step(*kept[2])
asyncio.run(next_cell())
""",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("address", ["unix:", "inproc:"])
def test_nothing_is_left_open_and_nothing_printed(zygote, stepped, address, end):
    ended = zygote.run(TRAINING + ENDS[end], ADDRESS=stepped.address if address == "unix:" else address)
    assert ended.err == ""
    assert (ended.code, ended.out) == (0, "")
