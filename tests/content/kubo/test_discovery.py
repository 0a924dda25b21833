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
        "/unix/x",
        "http://",
        "http://a:b@c/",
        "http://x?y",
        "/ip4/1.2.3.4/tcp/x",
    ],
)
def test_what_is_no_address_is_refused(text):
    """The text says what one looks like."""
    with pytest.raises(BadRequestError, match="no address of a Kubo RPC"):
        parse_address(text)


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
def test_a_file_that_holds_no_address_is_passed_over(tmp_path, text):
    """It may be another program's."""
    (tmp_path / "api").write_text(text)
    assert find_kubo(environ={"IPFS_PATH": str(tmp_path)}) is None


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
