"""A daemon says in one message why it does not start, and where it listens when it does."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from host_client import connect
from spu_server.daemon_settings import ServeSettings
from tests.system.raw import SECONDS, eventually

SERVER = str(Path(sys.executable).with_name("spu-server"))

SOCKET_CALL = {"x86_64": 41, "aarch64": 198}
"""Number of the system call `socket` by machine."""

WITHOUT_IPV6 = """
import ctypes, errno, os, socket, struct, sys

load, equal, leave = 0x20, 0x15, 0x06  # of Berkeley packet filters: linux/filter.h, linux/seccomp.h
program = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in [
        (load, 0, 0, 0),  # the number of the call
        (equal, 0, 3, int(sys.argv[1])),
        (load, 0, 0, 16),  # its first argument
        (equal, 0, 1, socket.AF_INET6),
        (leave, 0, 0, 0x00050000 | errno.EAFNOSUPPORT),
        (leave, 0, 0, 0x7FFF0000),  # allowed
    ]
)
instructions = ctypes.create_string_buffer(program)
described = struct.pack("HP", len(program) // 8, ctypes.addressof(instructions))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.create_string_buffer(described)) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs a command for which no socket of IPv6 can be made."""


def refusal(*options: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and standard error of a daemon that does not start."""
    done = subprocess.run(
        [SERVER, "serve", *options],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "400", **(env or {})},
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_second_daemon_on_a_living_socket_is_refused(stepped, tmp_path):
    first = tmp_path / "first"
    code, message = refusal("--listen", f"unix:{first}", "--listen", stepped.address)
    assert code == 1
    assert f"{stepped.address} is in use" in message
    assert not first.exists()
    with connect(stepped.address) as spu:
        assert spu.info.clock == "stepped"


@pytest.mark.skipif(platform.machine() not in SOCKET_CALL, reason="the number of the system call is not known")
def test_a_machine_without_ipv6_is_named_as_the_reason():
    command = [sys.executable, "-c", WITHOUT_IPV6, str(SOCKET_CALL[platform.machine()]), SERVER, "serve"]
    done = subprocess.run([*command, "--listen", "[::1]:0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "cannot listen on [::1]:0: Address family not supported by protocol" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_insecure_remote_it_listens_where_asked_and_says_on_which_port(daemon):
    one = daemon("--listen", "0.0.0.0:0", "--listen", "127.0.0.1:0", "--insecure-remote", "--clock", "stepped")
    assert one.addresses[0] == one.address
    ports = [address.rpartition(":")[2] for address in one.addresses[1:]]
    assert [address.rpartition(":")[0] for address in one.addresses[1:]] == ["0.0.0.0", "127.0.0.1"]
    assert "0" not in ports
    for address in (one.address, *(f"127.0.0.1:{port}" for port in ports)):
        with connect(address) as spu:
            assert spu.info.driver == "emulator"
    code, message = refusal("--listen", one.addresses[2])
    assert code == 1
    assert one.addresses[2] in message


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--rate", "5", "--clock", "stepped"], "--rate"),
        (["--max-bytes", "0"], "--max-bytes"),
        (["--clock", "broken"], "--clock"),
    ],
)
def test_a_bad_setting_is_named(options, name):
    code, message = refusal(*options)
    assert code == 2
    assert name in message


def test_an_unknown_driver_is_answered_with_those_there_are(tmp_path):
    code, message = refusal("--listen", f"unix:{tmp_path}/s", "--driver", "abacus")
    assert code == 1
    assert "abacus" in message
    assert "emulator" in message
    assert not (tmp_path / "s").exists()


def test_help_names_every_option_with_its_unit_and_default():
    done = subprocess.run(
        [SERVER, "serve", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "300", "TERM": "dumb"},
    )
    assert done.returncode == 0
    help_of = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("│ --")}
    settings = {f"--{name}".replace("_", "-") for name in ServeSettings.model_fields} | {"--config"}
    assert set(help_of) - {"--help"} == settings
    for option in settings:
        assert "default" in help_of[option], option
    for option, unit in {
        "--rate": "τ per second",
        "--tau": "seconds",
        "--max-bytes": "bytes",
        "--cells": "cells",
    }.items():
        assert unit in help_of[option]


def test_options_go_before_the_environment_and_that_before_the_file(tmp_path, monkeypatch, daemon):
    config = tmp_path / "spu.toml"
    config.write_text('rate = 3.0\ncells = 30\nseed = 3\nclock = "free"\n')
    monkeypatch.setenv("SPU_RATE", "2.0")
    monkeypatch.setenv("SPU_CELLS", "20")
    one = daemon("--config", str(config), "--rate", "1.0")
    with connect(one.address) as spu:
        assert (spu.info.rate, spu.info.cells, spu.info.clock) == (1.0, 20, "free")


def test_a_daemon_that_is_slow_to_take_a_connection_is_waited_for(stepped, tmp_path_factory):
    """As it is on a machine with too much to do: what gives up after 0.1 s says that nobody is there."""
    path = tmp_path_factory.mktemp("p") / "s"

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def serve(listener: socket.socket) -> None:
        client, _ = listener.accept()
        time.sleep(0.5)
        with client, socket.socket(socket.AF_UNIX) as daemon:
            daemon.connect(stepped.address.removeprefix("unix:"))
            back = threading.Thread(target=pass_on, args=(daemon, client))
            back.start()
            pass_on(client, daemon)
            back.join()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        between = threading.Thread(target=serve, args=(listener,))
        between.start()
        with connect(f"unix:{path}", timeout=20.0) as spu:
            assert spu.info.driver == "emulator"
        between.join()


def test_a_daemon_whose_standard_output_nobody_reads_ends_well(tmp_path_factory, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    folder = tmp_path_factory.mktemp("d")
    log, reader, writer = folder / "log", *os.pipe()
    os.close(reader)
    with log.open("w") as errors:
        command = [SERVER, "serve", "--listen", f"unix:{folder}/s", "--clock", "stepped"]
        one = subprocess.Popen(command, stdout=writer, stderr=errors)
    os.close(writer)
    eventually(lambda: "nobody reads standard output" in log.read_text(), "it is ready")
    one.terminate()
    assert one.wait(timeout=60.0) == 0
    assert "BrokenPipeError" not in log.read_text()


def test_the_health_service_says_that_it_serves(stepped):
    with grpc.insecure_channel(stepped.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tngd.spu.v1.SpuService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
