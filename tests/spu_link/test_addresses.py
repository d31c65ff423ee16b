"""Connections within this machine go through no proxy; others do as gRPC does."""

from __future__ import annotations

import socket
import threading

import pytest

from host_client import connect
from spu_link.errors import DeviceUnavailable
from tests.daemon import Daemon

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")


@pytest.fixture(scope="module")
def daemon_on_tcp(tmp_path_factory):
    with Daemon(tmp_path_factory.mktemp("d") / "s", "--listen", "127.0.0.1:0", "--clock", "stepped") as one:
        yield one


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that every variable names: a list of the first lines it was sent. It answers none."""
    lines = []

    def accept(listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed: the test is over
                return
            with client:
                client.settimeout(20.0)
                lines.append(client.recv(1000).split(b"\r\n")[0].decode())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        for name in VARIABLES:
            for variable in (name, name.upper()):
                monkeypatch.setenv(variable, f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield lines
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(20.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_a_client_of_a_daemon_on_this_machine_uses_no_proxy(daemon_on_tcp, proxy, host):
    port = daemon_on_tcp.addresses[1].rpartition(":")[2]
    with connect(f"{host}:{port}", timeout=20.0) as spu:
        assert spu.info.clock == "stepped"
    with connect(daemon_on_tcp.address, timeout=20.0) as spu:
        assert spu.info.clock == "stepped"
    assert proxy == []


@pytest.mark.parametrize("host", ["spu.invalid", "10.255.255.1", "localhost.invalid"])
def test_other_hosts_are_reached_through_the_proxy(proxy, host):
    with pytest.raises(DeviceUnavailable, match="no SPU daemon answers"):
        connect(f"{host}:50051", timeout=20.0)
    assert f"CONNECT {host}:50051 HTTP/1.1" in proxy
