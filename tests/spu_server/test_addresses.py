"""Where the daemon listens, and where it does not."""

import socket
import stat

import grpc
import pytest

from spu_server.addresses import AddressError, bind, release


@pytest.fixture
async def server():
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    yield server
    await server.stop(None)


async def test_ports_are_filled_in(server):
    addresses = await bind(server, ["127.0.0.1:0", "[::1]:0", "localhost:0"], insecure_remote=False)
    hosts, ports = zip(*(address.rsplit(":", 1) for address in addresses), strict=True)
    assert hosts == ("127.0.0.1", "[::1]", "localhost")
    assert all(int(port) > 0 for port in ports)


async def test_a_socket_is_for_its_owner_alone_and_is_removed_on_release(server, tmp_path):
    path = tmp_path / "s"
    assert await bind(server, [f"unix:{path}"], insecure_remote=False) == [f"unix:{path}"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    release([f"unix:{path}", "127.0.0.1:1"])
    assert not path.exists()
    release([f"unix:{path}"])


async def test_a_socket_that_nobody_listens_on_is_taken_over(server, tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert path.exists()
    await bind(server, [f"unix:{path}"], insecure_remote=False)


async def test_a_socket_that_somebody_listens_on_is_left_alone(server, tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(AddressError, match="in use"):
            await bind(server, [f"unix:{path}"], insecure_remote=False)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
async def test_an_address_that_others_can_reach_needs_to_be_asked_for_by_name(server, address):
    with pytest.raises(AddressError, match="--insecure-remote"):
        await bind(server, [address], insecure_remote=False)
    bound = await bind(server, [address], insecure_remote=True)
    assert not bound[0].endswith(":0")


@pytest.mark.parametrize(
    "address",
    ["unix:/nonexistent/folder/s", f"unix:/tmp/{'x' * 200}", "unix:/dev/null", "nosuchhost.invalid:1", ":0"],
)
async def test_an_address_that_cannot_be_listened_on_is_named(server, address):
    with pytest.raises(AddressError, match="cannot listen on") as caught:
        await bind(server, [address], insecure_remote=False)
    assert address in str(caught.value)


async def test_a_port_in_use_is_refused_and_not_shared(server):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(AddressError, match=address):
            await bind(server, [address], insecure_remote=False)


async def test_nothing_stays_behind_when_one_of_several_addresses_is_refused(server, tmp_path):
    with pytest.raises(AddressError):
        await bind(server, [f"unix:{tmp_path}/s", "0.0.0.0:0"], insecure_remote=False)
    assert not (tmp_path / "s").exists()
