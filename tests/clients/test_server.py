"""ServerInfo and the search for the server of this kernel."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.clients.server import ServerInfo, servers_of_kernel
from ipfs_stream_nb.errors import BadRequestError


@pytest.mark.parametrize(
    ("given_url", "url", "base_url", "token"),
    [
        ("http://localhost:8888", "http://localhost:8888/", "/", None),
        ("http://localhost:8888/", "http://localhost:8888/", "/", None),
        ("https://hub.example/user/ada%20l/", "https://hub.example/user/ada%20l/", "/user/ada%20l/", None),
        ("http://127.0.0.1:8888/lab?token=abc", "http://127.0.0.1:8888/", "/", "abc"),
        ("http://localhost:8888/a%40b/tree?token=abc", "http://localhost:8888/a%40b/", "/a%40b/", "abc"),
        ("http://localhost:8888/lab", "http://localhost:8888/", "/", None),
        ("http://localhost:8888/lab/", "http://localhost:8888/lab/", "/lab/", None),
        ("http://localhost:8888/lab/tree/x.ipynb?token=abc", "http://localhost:8888/", "/", "abc"),
        ("http://h/a/lab/workspaces/auto-1/tree/y/x.ipynb", "http://h/a/", "/a/", None),
        ("http://h/a/tree/?token=abc", "http://h/a/", "/a/", "abc"),
        ("http://h/notebooks/lab/x.ipynb?token=abc", "http://h/", "/", "abc"),
        ("http://h/a/tree/user/lab/x", "http://h/a/", "/a/", None),
        ("http://hub/user/lab/lab/tree/x.ipynb", "http://hub/user/lab/", "/user/lab/", None),
        ("http://hub/user/lab/", "http://hub/user/lab/", "/user/lab/", None),
        ("http://0.0.0.0:9/x", "http://127.0.0.1:9/x/", "/x/", None),
        ("http://[::]:9/", "http://[::1]:9/", "/", None),
    ],
)
def test_reads_urls_as_people_paste_them(given_url, url, base_url, token):
    """A URL is brought to one form, and a token in it is taken out."""
    server = ServerInfo.at(given_url)
    assert (server.url, server.base_url, server.token) == (url, base_url, token)


@pytest.mark.parametrize(
    "url", ["", "localhost:8888", "ftp://x/", "http://", "http://u:p@host/", "http://h:99999/", "http://[::/"]
)
def test_refuses_what_is_no_server_url(url):
    """Anything else is one clear error, whatever way it is malformed."""
    with pytest.raises(BadRequestError):
        ServerInfo.at(url)


@given(st.text())
def test_any_text_is_a_server_or_a_clear_error(text):
    """No text makes anything but a ServerInfo or a BadRequestError."""
    for url in (text, f"http://{text}"):
        try:
            server = ServerInfo.at(url)
        except BadRequestError:
            continue
        assert server.url.endswith("/")
        assert server.url.endswith(server.base_url)


def test_the_token_is_in_no_repr():
    """What a notebook shows of a server never holds its token."""
    assert "hunter2" not in repr(ServerInfo.at("http://localhost:1/", "hunter2"))


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://localhost:1/", True),
        ("http://127.0.0.1:1/", True),
        ("http://127.8.0.1:1/", True),
        ("http://[::1]:1/", True),
        ("http://10.0.0.1:1/", False),
        ("http://localhost.example/", False),
    ],
)
def test_tells_loopback_addresses(url, here):
    """Only a loopback address counts as this machine."""
    assert ServerInfo.at(url).on_this_machine is here


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """A Jupyter runtime directory of the test's own."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    for name in [name for name in os.environ if name.startswith(("JUPYTERHUB_", "JPY_"))]:
        monkeypatch.delenv(name)
    return tmp_path


def test_finds_the_parent_server(runtime):
    """The record of the server whose process id a kernel is given is the one that is read."""
    for pid in (11, 12):
        record = {
            "url": f"http://localhost:{pid}/a%40b/",
            "base_url": "/a%40b/",
            "token": f"t{pid}",
            "pid": pid,
        }
        (runtime / f"jpserver-{pid}.json").write_text(json.dumps(record))
    (server,) = servers_of_kernel({"JPY_PARENT_PID": "12"})
    assert (server.url, server.token, server.same_origin) == ("http://localhost:12/a%40b/", "t12", True)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"url": "http+unix://%2Frun%2Fj.sock/", "sock": "/run/j.sock"}']
)
def test_a_record_that_is_of_no_use_is_passed_over(runtime, text):
    """A record that is half written, or of a server on a unix socket, is no server."""
    (runtime / "jpserver-12.json").write_text(text)
    assert list(servers_of_kernel({"JPY_PARENT_PID": "12"})) == []


@pytest.mark.parametrize(
    "environ", [{}, {"JPY_PARENT_PID": ""}, {"JPY_PARENT_PID": "../12"}, {"JPY_PARENT_PID": "7"}]
)
def test_outside_of_a_kernel_there_is_no_server(runtime, environ):
    """Without a parent server there is nothing to ask."""
    assert list(servers_of_kernel(environ)) == []


def test_a_hub_user_server_comes_first(runtime):
    """On a hub the address, prefix and token stand in the environment."""
    environ = {
        "JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:8888/user/ada/",
        "JUPYTERHUB_SERVICE_PREFIX": "/user/ada/",
        "JUPYTERHUB_API_TOKEN": "hub",
    }
    (server,) = servers_of_kernel(environ)
    assert (server.url, server.base_url, server.token) == (
        "http://127.0.0.1:8888/user/ada/",
        "/user/ada/",
        "hub",
    )
