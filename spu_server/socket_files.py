"""Unix sockets as files: made at one instant, locked while they are used, and removed by their maker alone."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar, NoReturn

import structlog

from spu_link.addresses import path_fault

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 1.0
"""Timeout of the connection that finds out whether somebody listens on a socket."""

WATCH_SECONDS = 0.5
"""Pause between two looks at whether a socket's file is still in its place."""

LOCK_SUFFIX = ".lock"
"""Of a lock file's path, after that of its socket."""

LOCK_BYTES = 20
"""Bytes that are read of a lock file: more than a process number has."""


class AddressError(ValueError):
    """An address that the daemon will not or cannot listen on."""

    remedy: ClassVar[str] = "choose another address, or stop the process that listens there; the message says which"


class SocketFile:
    """The file of a Unix socket that this process listens on, open to its owner alone (mode 0600).

    The socket is bound under a temporary name and renamed, which replaces a stale one at one instant. It also keeps
    gRPC from removing the file of another process: when a server stops, gRPC removes whatever has the name it bound.

    Args:
        path: of the file, exactly as it is to be shown.

    Raises:
        AddressError: when no socket can have this path.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._made: tuple[int, int] | None = None
        if fault := path_fault(path):
            raise AddressError(f"cannot listen on unix:{path}: the path {fault}")
        if os.path.basename(path) in ("", ".", ".."):
            raise AddressError(f"cannot listen on unix:{path}: the path is that of a folder")

    @property
    def missing(self) -> bool:
        """True while nothing has this path."""
        return not os.path.lexists(self.path)

    @property
    def ours(self) -> bool:
        """True while the file is the one that this object made."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._made

    def make(self, listen: Callable[[str], object]) -> None:
        """Make the socket, again if it was removed.

        Args:
            listen: binds a socket to the name it is given, and listens; raises OSError.

        Raises:
            AddressError: when the folder cannot be used, a file of another kind has the path, or another process
                listens there.
        """
        with self._folder() as folder:
            self._check_free()
            name = f"{folder}/.spu-{secrets.token_hex(6)}"
            mask = os.umask(0o177)
            try:
                listen(name)
                status = os.lstat(name)
                os.rename(name, os.path.join(folder, os.path.basename(self.path)))
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(name)
                raise
            finally:
                os.umask(mask)
            self._made = status.st_dev, status.st_ino

    def remove(self) -> None:
        """Remove the file, unless it is another one by now."""
        if self.ours:
            os.unlink(self.path)
        self._made = None  # whose number another file may get

    @contextmanager
    def _folder(self) -> Iterator[str]:
        """Open the folder; its short path is valid inside: a temporary name may be longer than the socket's."""
        folder = os.path.dirname(self.path) or "."
        with as_address_error(self.path):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                short = f"/proc/self/fd/{descriptor}"
                yield short if os.path.isdir(short) else folder
            finally:
                os.close(descriptor)

    def _check_free(self) -> None:
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(status.st_mode):
            raise AddressError(
                f"cannot listen on unix:{self.path}: a file that is no socket has this path; choose another path"
            )
        if _somebody_listens(self.path):
            raise AddressError(
                f"unix:{self.path} is in use by another process; choose another path or stop that process"
            )


class SocketLock:
    """The right to a Unix socket's path: a lock file next to it, locked until this process ends or releases it.

    Args:
        path: of the socket.

    Raises:
        AddressError: when another process holds the lock, or it cannot be had.
    """

    _held: ClassVar[set[SocketLock]] = set()
    """Locks that this process holds."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = path + LOCK_SUFFIX
        with as_address_error(path):
            self._descriptor = self._take_lock()
        self._held.add(self)

    @property
    def lost(self) -> bool:
        """True when the lock file has been removed, so that another process could lock a new one."""
        try:
            return not os.path.samestat(os.fstat(self._descriptor), os.lstat(self._lock))
        except OSError:
            return True

    def renew(self) -> None:
        """Lock a new file, if the one that is locked has been removed.

        Raises:
            AddressError: when another process has been faster.
        """
        if self.lost:
            with as_address_error(self.path):
                descriptor = self._take_lock()
            os.close(self._descriptor)
            self._descriptor = descriptor

    def release(self) -> None:
        """Remove the lock file, and let others have the path."""
        if not self.lost:
            os.unlink(self._lock)
        self._held.remove(self)
        os.close(self._descriptor)

    def _take_lock(self) -> int:
        """Lock the lock file and write the number of this process; return its descriptor."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            descriptor = os.open(self._lock, flags, 0o600)
            try:
                holder = os.pread(descriptor, LOCK_BYTES, 0).decode(errors="replace").strip()
                if not stat.S_ISREG(os.fstat(descriptor).st_mode) or (holder and not holder.isdecimal()):
                    raise AddressError(
                        f"cannot listen on unix:{self.path}: {self._lock} would be its lock file, and is a file of "
                        "something else; choose another path"
                    )
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    whose = f"process {holder}" if holder else "another process, which is just starting"
                    if any(os.path.sameopenfile(descriptor, lock._descriptor) for lock in self._held):  # noqa: SLF001 - of the same class
                        whose = "this daemon itself: it is listed twice"
                    raise AddressError(
                        f"unix:{self.path} is in use by {whose}; choose another path or stop that process"
                    ) from None
                if os.path.lexists(self._lock) and os.path.samestat(os.fstat(descriptor), os.lstat(self._lock)):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its last holder has removed it meanwhile


@contextmanager
def as_address_error(path: str) -> Iterator[None]:
    """Turn an error of the system inside into an `AddressError` with the socket's path."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            raise AddressError(f"cannot listen on unix:{path}: there is no folder {folder} ({reason})") from None
        named = isinstance(error.filename, str) and not error.filename.startswith("/proc/self/fd/")
        raise AddressError(
            f"cannot listen on unix:{path}: {error.filename if named else folder} cannot be used ({reason}); choose "
            "another path"
        ) from None


def _somebody_listens(path: str) -> bool:
    """Return whether a process listens on a socket, of whatever kind.

    Raises:
        OSError: when that cannot be known, for instance because it belongs to another user.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONNECT_SECONDS)
        try:
            client.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except (TimeoutError, BlockingIOError):
            return True  # it does not answer, but it is there
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:  # of a socket for packets, which somebody listens on
                raise OSError(error.errno, error.strerror, path) from None
    return True


async def keep(file: SocketFile, make: Callable[[], Awaitable[None]]) -> NoReturn:
    """Watch a socket's file: recreate it when it has been removed, and log when something else is in its place.

    Args:
        file: the file.
        make: recreates it; what it raises is logged, and it is called again after `WATCH_SECONDS`.
    """
    logged = ""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        problem = ""
        if file.missing:
            try:
                await make()
                log.warning("the socket's file had been removed and was recreated", path=file.path)
            except Exception as error:  # noqa: BLE001 - whatever it is, clients need the next attempt
                problem = str(error) if isinstance(error, AddressError) else repr(error)
        elif not file.ours:
            problem = "another file is in its place; remove it, and the socket is recreated"
        if problem and problem != logged:
            log.error("clients cannot connect to a socket", path=file.path, why=problem)
        logged = problem
