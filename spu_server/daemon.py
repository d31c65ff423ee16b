"""The daemon: opens the driver, serves until a signal ends it, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from spu_link.addresses import socket_path
from spu_link.tuning import settle_process
from spu_server.addresses import Endpoints
from spu_server.clock import FreeClock, SteppedClock
from spu_server.daemon_settings import ServeSettings
from spu_server.device import Device
from spu_server.drivers.event_log import Header, LogWriter
from spu_server.drivers.port import DriverPort
from spu_server.drivers.process import DriverProcess
from spu_server.drivers.recording import RecordingPort
from spu_server.memory import Payload
from spu_server.regions import Regions
from spu_server.services.memory import MemoryService, is_supported
from spu_server.services.spu import SERVICE, SpuService
from spu_server.socket_files import AddressError
from spu_server.stalls import Stalls
from spu_server.supervisor import Supervisor

log = structlog.get_logger(__name__)

FINISH_SECONDS = 2.0
"""Seconds that calls may go on after SIGTERM before those that wait for the device fail."""

GRACE_SECONDS = 3.0
"""Seconds after SIGTERM at which every call has ended."""

MEMORY_SUFFIX = ".memory"
"""Of the memory socket's path, after that of the Unix socket in the same folder."""


async def serve(settings: ServeSettings, endpoints: Endpoints, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Prints ``ready ADDRESS…`` on standard output once every address answers.

    Args:
        settings: of device and clock.
        endpoints: the addresses, bound.
        stop: set by signals.

    Raises:
        DeviceFault: when the driver cannot be opened, or its device finds that something is wrong with it.
        LogUnusable: when a log is asked for and cannot be written.
    """
    addresses = endpoints.addresses
    driver = DriverProcess(settings.driver, settings.driver_options, settings.driver_deadline)
    port: DriverPort[Payload] = driver
    memory: MemoryService | None = None
    supervision: asyncio.Task[None] | None = None
    try:
        opening, stopping = asyncio.create_task(driver.start()), asyncio.create_task(stop.wait())
        await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not opening.done():
            opening.cancel()
            return
        capabilities = await opening
        settle_process()
        tau = capabilities.tau or settings.tau
        clock = FreeClock(settings.rate or 1.0 / tau) if settings.clock == "free" else SteppedClock()
        epoch = time.time_ns()
        if settings.record is not None:
            writer = LogWriter(
                settings.record, Header.of(settings.driver, settings.driver_options, capabilities, clock, epoch)
            )
            port = RecordingPort(driver, writer, clock)
            log.info("recording", log=str(writer.folder))
        device: Device[Payload] = Device(port, capabilities, clock, tau, epoch)
        await device.examine(calibrate=settings.calibrate)
        stalls = Stalls()
        supervision = asyncio.create_task(Supervisor(device, driver, calibrate=settings.calibrate).run())
        regions = Regions(capabilities.max_bytes)
        regions.on_freed = driver.forget
        memory = _memory_service(addresses, device, regions)
        memory_address = f"unix:{memory.path}" if memory else ""
        status = health.HealthServicer()
        service = SpuService(device, stalls, regions, memory_address)

        def register(server: grpc.aio.Server) -> None:
            service.add_to(server)
            health_pb2_grpc.add_HealthServicer_to_server(status, server)

        await endpoints.start(register)
        for name in ("", SERVICE):
            await status.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", addresses=addresses, driver=capabilities.name, driver_pid=driver.pid, clock=clock.kind)
        announce_ready(addresses)
        await stop.wait()
        log.info("stopping", grace_seconds=GRACE_SECONDS)
        await status.enter_graceful_shutdown()
        if memory:
            memory.withdraw()
        stopped = asyncio.create_task(endpoints.stop(GRACE_SECONDS))
        await asyncio.wait([stopped], timeout=FINISH_SECONDS)
        await device.close()
        await stopped
        await stalls.close()
    finally:
        if memory:
            await memory.close()
        if supervision:
            supervision.cancel()
            await asyncio.gather(supervision, return_exceptions=True)
        await driver.close()
        if isinstance(port, RecordingPort):
            await port.close()
    log.info("stopped")


def announce_ready(addresses: Sequence[str]) -> None:
    """Print ``ready ADDRESS…`` as bytes, for file names need not be in the terminal's encoding.

    An address with white space, quotes or backslashes is quoted as in a shell.
    """
    if sys.stdout is None:  # it was closed from the start
        return
    shown = [shlex.quote(address) if re.search(r"[\s'\"\\]", address) else address for address in addresses]
    try:
        sys.stdout.buffer.write(os.fsencode(" ".join(["ready", *shown]) + "\n"))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        log.warning("nobody reads standard output")
        with open(os.devnull, "wb") as nowhere:  # the flush at exit would fail as well
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _memory_service(addresses: Sequence[str], device: Device[Payload], regions: Regions) -> MemoryService | None:
    """Listen next to the first Unix socket; without it clients send their bytes over gRPC."""
    path = next(filter(None, map(socket_path, addresses)), None)
    if path is None or not is_supported():
        return None
    path = os.path.join(os.getcwd(), path) + MEMORY_SUFFIX  # clients have other working directories
    try:
        return MemoryService(path, device.sessions, regions)
    except AddressError as error:
        log.warning("no shared memory", path=path, why=str(error))
        return None
