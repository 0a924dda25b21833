"""How a daemon is found."""

from __future__ import annotations

import pytest

from ipfs_stream_nb.content.kubo.discovery import find_kubo, parse_address
from ipfs_stream_nb.errors import BadRequestError


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:5001", "http://127.0.0.1:5001/"),
        ("http://127.0.0.1:5001/api/v0/", "http://127.0.0.1:5001/"),
        ("https://kubo.example/base", "https://kubo.example/base/"),
        ("127.0.0.1:5001", "http://127.0.0.1:5001/"),
        ("localhost:5001", "http://localhost:5001/"),
        ("/ip4/127.0.0.1/tcp/5001", "http://127.0.0.1:5001/"),
        ("/ip4/0.0.0.0/tcp/5001/http", "http://127.0.0.1:5001/"),
        ("/ip6/::1/tcp/5001", "http://[::1]:5001/"),
        ("/dns/kubo.example/tcp/443/https", "https://kubo.example/"),
        ("/dns4/kubo.example/tcp/443/tls/http", "https://kubo.example/"),
    ],
)
def test_addresses_have_many_forms(text, url):
    """URLs, hosts with ports, and multiaddrs."""
    assert str(parse_address(text)) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://x",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/5001",
        "/unix/",
        "http://",
        "/ip4/1.2.3.4/tcp/x",
    ],
)
def test_what_is_no_address_is_refused(text):
    """The text says what one looks like."""
    with pytest.raises(BadRequestError, match="no address of a Kubo RPC"):
        parse_address(text)


@pytest.mark.parametrize(
    "text", ["http://me:secret@host:5001/", "me:secret@host:5001", "http://host/?key=secret"]
)
def test_a_secret_in_an_address_is_refused_and_not_shown(text):
    """The text says where the authorisation belongs."""
    with pytest.raises(BadRequestError, match="kubo_auth") as raised:
        find_kubo(text, environ={})
    assert "secret" not in str(raised.value)


def test_a_unix_socket_is_an_address():
    """As Kubo writes it, with one slash or two."""
    for text in ("/unix/run/kubo.sock", "/unix//run/kubo.sock"):
        found = find_kubo(text, environ={})
        assert found is not None
        assert (found.socket, found.name) == ("/run/kubo.sock", "Kubo at /run/kubo.sock")


def test_the_setting_comes_before_the_environment_and_that_before_the_file(tmp_path):
    """Each has its reason beside it."""
    (tmp_path / "api").write_text("/ip4/127.0.0.1/tcp/3\n")
    environ = {"IPFS_API": "http://127.0.0.1:2", "IPFS_PATH": str(tmp_path)}
    found = find_kubo("127.0.0.1:1", environ=environ)
    assert found is not None
    assert (found.url.port, found.found) == (1, "set by kubo_api")
    found = find_kubo(environ=environ)
    assert found is not None
    assert (found.url.port, found.found) == (2, "set by $IPFS_API")
    found = find_kubo(environ={"IPFS_PATH": str(tmp_path)})
    assert found is not None
    assert found.url.port == 3
    assert str(tmp_path) in found.found


def test_the_home_directory_is_the_last_place(tmp_path):
    """~/.ipfs/api, where IPFS_PATH is not set; without it there is none."""
    assert find_kubo(environ={"HOME": str(tmp_path)}) is None
    (tmp_path / ".ipfs").mkdir()
    (tmp_path / ".ipfs" / "api").write_text("/ip4/127.0.0.1/tcp/7")
    found = find_kubo(environ={"HOME": str(tmp_path)})
    assert found is not None
    assert found.url.port == 7


@pytest.mark.parametrize("text", ["", "nonsense", "\xff" * 5000])
def test_a_file_that_holds_no_address_is_passed_over(tmp_path, text, caplog):
    """It may be another program's; the log says so, and not what was in it."""
    (tmp_path / "api").write_text(text)
    assert find_kubo(environ={"IPFS_PATH": str(tmp_path)}) is None
    (warning,) = caplog.messages
    assert warning == f"{tmp_path / 'api'} is passed over: it holds no address of a Kubo RPC"


def test_a_file_that_cannot_be_read_is_passed_over(tmp_path, caplog):
    """The log says why."""
    (tmp_path / "api").mkdir()
    assert find_kubo(environ={"IPFS_PATH": str(tmp_path)}) is None
    assert "Is a directory" in caplog.text


def test_credentials_are_sent_and_not_shown():
    """Bearer and basic, as Kubo's own option takes them; a wrong form is named without the secret."""
    found = find_kubo("127.0.0.1:1", "bearer:secret", {})
    assert found is not None
    assert found.headers == {"Authorization": "Bearer secret"}
    assert "secret" not in repr(found)
    found = find_kubo("127.0.0.1:1", environ={"IPFS_API_AUTH": "basic:me:secret"})
    assert found is not None
    assert found.headers == {"Authorization": "Basic bWU6c2VjcmV0"}
    for wrong in ("secret", "digest:secret", "basic:secret", "bearer:"):
        with pytest.raises(BadRequestError, match="bearer:TOKEN") as raised:
            find_kubo("127.0.0.1:1", wrong, {})
        assert "secret" not in str(raised.value)
