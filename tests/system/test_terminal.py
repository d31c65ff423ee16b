"""Output of daemon and client on a terminal: nothing of gRPC, no traceback, and on an ASCII terminal too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from host_client import connect
from spu_link.errors import SpuError
from spu_link.status import from_rpc_error

SERVER = str(Path(sys.executable).with_name("spu-server"))

BAD_TARGET = "import grpc; grpc.insecure_channel('unix:/' + 'x' * 200)"
"""gRPC's core logs several lines for this."""


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GRPC_", "SPU_"))}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**clean, "COLUMNS": "300", **env})


@pytest.mark.parametrize("package", ["host_client", "spu_server", "spu_link"])
def test_grpc_logs_nothing_to_the_terminal(package):
    assert run(sys.executable, "-c", f"import {package}; {BAD_TARGET}").stderr == ""


def test_grpc_logs_as_the_user_asks_for():
    assert "E" in run(sys.executable, "-c", f"import host_client; {BAD_TARGET}", GRPC_VERBOSITY="ERROR").stderr


def test_a_daemon_that_does_not_start_says_so_in_one_line(tmp_path):
    for address in (f"unix:{tmp_path}/none/s", "nosuchhost.invalid:1", "192.0.2.1:1"):
        done = run(SERVER, "serve", "--insecure-remote", "--listen", address)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("not started: ")
        assert done.stderr.count("\n") == 1
        assert "GRPC" not in done.stderr.upper()


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: "
         "Connection refused", "(Connection refused)"),
        ("failed to connect to all addresses; last error: FAILED_PRECONDITION: unix:/s: connect failed: addr: unix:/s "
         "error: No such file or directory", "(No such file or directory)"),
        ("failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: recvmsg:Connection reset by "
         "peer (104)", "(Connection reset by peer)"),
        ("errors resolving spu:1: [field:hostname lookup error:address lookup failed for spu:1: Domain name not found]",
         "(its host name cannot be resolved)"),
        ("Received http2 header with status: 404", ""),
        ("StatusCode.INTERNAL", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_errors_of_a_connection_have_the_system_s_words_and_none_of_grpc_s(code, details, reason):
    class Failed(grpc.RpcError):
        def code(self):
            return code

        def details(self):
            return details

        def trailing_metadata(self):
            return ()

    message = str(from_rpc_error(Failed(), call="Read", address="unix:/s"))
    assert not any(word in message for word in (*grpc.StatusCode.__members__, "StatusCode", "http2", "last error"))
    assert reason in message or code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_server_that_is_no_daemon_is_called_so(tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        text=True,
    )
    with server:
        assert server.stdout is not None
        port = server.stdout.readline().split(" port ")[1].split()[0]
        try:
            with pytest.raises(SpuError, match="no SPU daemon") as caught:
                connect(f"127.0.0.1:{port}", timeout=20.0)
        finally:
            server.kill()
    assert not any(name in str(caught.value) for name in grpc.StatusCode.__members__)


ASCII = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("env", ASCII, ids=" ".join)
@pytest.mark.parametrize("command", ["--help", "serve --help", "conformance --help"])
def test_commands_write_on_an_ascii_terminal(command, env):
    done = run(SERVER, *command.split(), **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "tau per second" in done.stdout or command != "serve --help"
    assert "2^63" in done.stdout or command != "serve --help"


def test_errors_name_what_was_given_on_an_ascii_terminal():
    done = run(SERVER, "serve", "--listen", "unix:/nonexistent/é", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert r"unix:/nonexistent/\xe9" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--driver", "abacus"], "abacus"),
        (["conformance", "abacus"], "abacus"),
        (["discover", "abacus"], "abacus"),
        (["serve", "--rate", "-1"], "--rate"),
        (["serve", "--driver-option", "fast"], "--driver-option"),
        (["serve", "--listen", "unix:/nonexistent/s"], "/nonexistent"),
    ],
)
def test_what_is_mistyped_is_refused_before_torch_is_loaded(arguments, words):
    code = "import sys; sys.modules['torch'] = None; from spu_server.cli import app; app(sys.argv[1:])"
    done = run(sys.executable, "-c", code, *arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_option_that_a_driver_asks_for_is_one_that_conformance_takes():
    done = run(SERVER, "conformance", "board", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert "--driver-option address=" in done.stderr
    assert "Traceback" not in done.stderr
    assert "--driver-option" in run(SERVER, "conformance", "--help").stdout
