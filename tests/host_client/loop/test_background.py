import asyncio
import gc
from typing import Any

from host_client.loop.uploads import Background


async def test_an_error_of_a_cancelled_task_is_neither_reported_nor_logged() -> None:
    errors, logged = list[Exception](), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))
    waiting = asyncio.Event()

    async def call() -> None:
        try:
            waiting.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("the daemon is gone") from None  # what a call raises meanwhile

    background = Background(errors.append)
    background.start(call())
    await waiting.wait()
    background.cancel()
    for _ in range(3):  # the error, the callback, and one more
        await asyncio.sleep(0)
    gc.collect()  # asyncio logs an error that nobody asked for when its task is gone
    assert not asyncio.all_tasks() - {asyncio.current_task()}
    assert errors == []
    assert logged == []
