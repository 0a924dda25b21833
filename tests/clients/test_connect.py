"""connect(): which server it finds, and what happens when that goes away."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import find_connection_file

import ipfs_stream_nb as ipfs
from ipfs_stream_nb.clients.direct import DirectNode
from ipfs_stream_nb.clients.remote import RemoteNode
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.errors import (
    BadRequestError,
    NotFoundError,
    QuotaExceededError,
    RetrievalError,
    TooLargeError,
    UnauthorizedError,
)
from ipfs_stream_nb_server.standalone import StandaloneServer

MIB = 1024 * 1024
EXTENSION = json.dumps({"ServerApp": {"jpserver_extensions": {"ipfs_stream_nb_server": True}}})


def fetch(url: str | urllib.request.Request) -> bytes:
    """What a browser would get."""
    with urllib.request.urlopen(url) as response:  # noqa: S310  # the URLs are those of servers started here
        return response.read()


def python(code: str, **environ: str) -> subprocess.CompletedProcess:
    """Run a script in a fresh interpreter that shows every warning."""
    # not asyncio's debug mode, which -X dev has too: on a busy machine it would be heard on stderr
    command = [sys.executable, "-X", "faulthandler", "-W", "error", "-c", code]
    environ = {"PYTHONASYNCIODEBUG": ""} | environ
    return subprocess.run(
        command, env=os.environ | environ, capture_output=True, text=True, timeout=100, check=False
    )


@contextmanager
def jupyter_server(home: Path, *settings: str):
    """A real Jupyter server with the extension, at a base URL that catches hard-coded paths."""
    (home / "config").mkdir()
    (home / "config" / "jupyter_server_config.json").write_text(EXTENSION)
    token = secrets.token_hex(8)
    environ = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "IPFS_STREAM_NB_REPO": str(home / "repo"),
    }
    command = [sys.executable, "-m", "jupyter_server", "--allow-root", "--no-browser", "--ServerApp.port=0"]
    command += [
        f"--IdentityProvider.token={token}",
        "--ServerApp.base_url=/a%40b/",
        f"--ServerApp.root_dir={home}",
        *settings,
    ]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    record = home / "runtime" / f"jpserver-{process.pid}.json"
    try:
        deadline = time.monotonic() + 60
        while not (record.exists() and record.read_text().endswith("}")):  # written while we look
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.1)
        yield process, json.loads(record.read_text()), environ
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    """Such a server, as it comes."""
    with jupyter_server(tmp_path_factory.mktemp("jupyter")) as running:
        yield running


def test_by_url_it_takes_the_short_way(jupyter, tmp_path):
    """A server of this machine is found by URL, and its store is opened directly."""
    _, record, _ = jupyter
    with ipfs.connect(record["url"], record["token"]) as client:
        assert isinstance(client._session.client.node, EmbeddedNode)
        assert client.server.base_url == "/a%40b/"
        assert record["url"] in repr(client)
        assert "read directly" in repr(client)
        added = client.add(b"hello")
        assert fetch(client.url(added)) == b"hello"
    for page in ("lab", "lab/tree/a/x.ipynb", "tree", "notebooks/x.ipynb"):
        with ipfs.connect(f"{record['url']}{page}?token={record['token']}") as client:
            assert client.cat(added) == b"hello"


def test_the_short_way_keeps_the_quota_and_the_free_space(tmp_path):
    """What the operator set for the store holds for whoever opens it directly."""
    settings = [f"--IPFSStreamExtension.quota={MIB}", "--IPFSStreamExtension.min_free=12345"]
    with (
        jupyter_server(tmp_path, *settings) as (_, record, _),
        ipfs.connect(record["url"], record["token"]) as client,
    ):
        node = client._session.client.node
        assert isinstance(node, EmbeddedNode)
        assert node.store.min_free == 12345
        with pytest.raises(QuotaExceededError):
            client.add(os.urandom(2 * MIB))


def test_a_server_with_rules_of_its_own_is_asked(tmp_path):
    """An upload limit, and so a policy, cannot be passed by opening the store directly."""
    with (
        jupyter_server(tmp_path, f"--IPFSStreamExtension.max_add_size={MIB}") as (_, record, _),
        ipfs.connect(record["url"], record["token"]) as client,
    ):
        assert isinstance(client._session.client.node, RemoteNode)
        with pytest.raises(TooLargeError):
            client.add(os.urandom(2 * MIB))


def test_where_the_store_is_not_to_be_had_it_goes_over_http(jupyter, monkeypatch):
    """A store that cannot be opened from here is used through its server."""
    _, record, _ = jupyter

    def unreadable(*_args, **_options):
        raise PermissionError

    monkeypatch.setattr("ipfs_stream_nb.clients.connect.BlockStore.open", unreadable)
    with ipfs.connect(record["url"], record["token"]) as client:
        assert isinstance(client._session.client.node, RemoteNode)
        assert "over HTTP" in repr(client)
        added = client.add(os.urandom(3 * MIB))
        assert client.stat(added).size == 3 * MIB
        assert client.pin(added).cid == added.cid


def test_a_wrong_token_is_refused(jupyter):
    """Nothing else is tried for a server that was asked for by URL, and the token is not repeated."""
    _, record, _ = jupyter
    with pytest.raises(UnauthorizedError) as caught:
        ipfs.connect(record["url"], "wrong-token")
    assert "the token was refused" in str(caught.value)
    assert "pass token=" in str(caught.value)
    assert "wrong-token" not in str(caught.value)
    with pytest.raises(UnauthorizedError, match=r"a token is needed.*pass token="):
        ipfs.connect(record["url"])


def test_nothing_there_is_a_clear_error():
    """A URL where nobody listens is named."""
    with pytest.raises(RetrievalError, match=r"no server answers at http://127\.0\.0\.1:9/"):
        ipfs.connect("http://127.0.0.1:9/")


def test_another_server_is_a_clear_error(tmp_path):
    """A server without the extension is told from one that is not there."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "http.server",
        "0",
        "--bind",
        "127.0.0.1",
        "--directory",
        str(tmp_path),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            port = process.stdout.readline().split("port ")[1].split()[0]
            with pytest.raises(ipfs.IPFSStreamError, match="ipfs_stream_nb extension"):
                ipfs.connect(f"http://127.0.0.1:{port}/")
        finally:
            process.terminate()


KERNEL_CODE = """
import ipfs_stream_nb as ipfs
client = ipfs.connect()
print(repr(client))
added = client.add(b"from the kernel", name="k.txt")
print(client.cat(added).decode(), client.server.same_origin, client.server.base_url)
aclient = await ipfs.connect_async()
print((await aclient.cat(added)).decode(), repr(aclient))
await aclient.close()
client.cat("nonsense")
"""


def run_in_kernel(jupyter, code):
    """Run code in a kernel that the Jupyter server starts, over its own API; the texts that it sends."""
    _, record, environ = jupyter
    headers = {"Authorization": f"token {record['token']}"}
    request = urllib.request.Request(f"{record['url']}api/kernels", b"{}", headers)  # noqa: S310  # as in fetch
    kernel = json.loads(fetch(request))["id"]
    file = find_connection_file(f"kernel-{kernel}.json", path=[environ["JUPYTER_RUNTIME_DIR"]])
    texts = []

    async def run():
        client = AsyncKernelClient(connection_file=file)
        client.load_connection_file()
        client.start_channels(hb=False)  # a busy machine's kernel that is late with a heartbeat is not dead
        try:
            await client.wait_for_ready(60)

            def hook(message):
                texts.append((message["header"]["msg_type"], message["content"]))

            await client.execute_interactive(code, timeout=60, output_hook=hook)
        finally:
            client.stop_channels()

    asyncio.run(run())
    return texts


def test_a_kernel_finds_its_server(jupyter):
    """In a kernel of a Jupyter server with the extension, connect() is at that server, sync and async."""
    texts = run_in_kernel(jupyter, KERNEL_CODE)
    stream = "".join(content["text"] for kind, content in texts if kind == "stream")
    lines = stream.splitlines()
    assert "the Jupyter server of this kernel; store " in lines[0]
    assert lines[1] == "from the kernel True /a%40b/"
    assert lines[2].startswith("from the kernel <AsyncClient: http://")
    (error,) = [content for kind, content in texts if kind == "error"]
    assert error["ename"] == "BadCIDError"
    assert len(error["traceback"]) == 2
    assert error["traceback"][1].strip() == 'Cell In[1], line 9: client.cat("nonsense")'


def test_a_server_without_the_extension_is_passed_over(jupyter, repo, tmp_path, monkeypatch):
    """A kernel whose server does not have the extension gets an embedded server, and the reason."""
    _, record, _ = jupyter
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("JPY_PARENT_PID", "4242")
    (tmp_path / "jpserver-4242.json").write_text(
        json.dumps(record | {"url": record["url"] + "nothing/here/"})
    )
    with ipfs.connect() as client:
        assert client.server.embedded
        assert "not taken" in client._repr_html_()
        assert "the Jupyter server of this kernel" in client._repr_html_()


def test_two_processes_share_a_store(repo):
    """What another process adds is here at once, and the other way round, with both connected."""
    with ipfs.connect() as client:
        mine = client.add(b"mine")
        code = f"""
import ipfs_stream_nb as ipfs
with ipfs.connect() as client:
    assert client.cat("{mine}") == b"mine"
    print(client.add(b"theirs", progress=False))
"""
        done = python(code)
        assert (done.returncode, done.stderr) == (0, "")
        assert client.cat(done.stdout.strip()) == b"theirs"
        assert len(client.pins()) == 2


def test_leaving_without_close_is_clean(repo):
    """A script that just ends leaves no warning, no thread and no damage."""
    code = """
import ipfs_stream_nb as ipfs
client = ipfs.connect()
added = client.add(bytes(3_000_000), progress=False)
client.url(added), client.open(added).read(10)
print(added)
"""
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")
    with ipfs.connect() as client:
        assert client.stat(done.stdout.strip()).size == 3_000_000


def test_an_async_client_that_is_not_closed_does_not_hang(repo):
    """An interpreter ends even where an async client was forgotten."""
    code = """
import asyncio
import ipfs_stream_nb as ipfs
async def main():
    client = await ipfs.connect_async()
    print(await client.cat(await client.add(b"x")))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "b'x'\n")


def test_a_server_that_dies_is_a_clear_error(repo, monkeypatch):
    """Calls to a server that was stopped say so; a new connect() asks it anew and says so, too."""
    monkeypatch.setattr("ipfs_stream_nb.clients.connect._same_store", no_store)
    server = StandaloneServer(partial(EmbeddedNode.open, repo)).start()
    url, token = server.url, server.token
    with ipfs.connect(url, token) as client:
        added = client.add(b"x")
        server.stop()
        for call in (client.cat, client.stat, client.pin, client.url, client.export_car):
            with pytest.raises(RetrievalError, match=r"no server answers|broke off"):
                call(added)
        with pytest.raises(RetrievalError):
            ipfs.connect(url, token)


async def no_store(_health):
    return None


def test_a_server_that_dies_in_the_middle_of_an_add(repo, monkeypatch):
    """An add that is cut is an error, not a CID."""
    monkeypatch.setattr("ipfs_stream_nb.clients.connect._same_store", no_store)
    server = StandaloneServer(partial(EmbeddedNode.open, repo)).start()

    def source():
        yield bytes(MIB)
        server.stop()
        for _ in range(100):
            yield bytes(MIB)

    with (
        ipfs.connect(server.url, server.token) as client,
        pytest.raises(RetrievalError, match=r"broke off|no server"),
    ):
        client.add(source())


def test_a_restarted_server_is_found_anew(repo, tmp_path, monkeypatch):
    """connect() notices that its connection is dead, and looks for the server that is there now."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("JPY_PARENT_PID", "4242")

    def start():
        server = StandaloneServer(partial(EmbeddedNode.open, repo)).start()
        record = {"url": server.url, "token": server.token}
        (tmp_path / "jpserver-4242.json").write_text(json.dumps(record))
        return server

    with start() as first:
        one = ipfs.connect()
        assert one.server.url == first.url
    with start() as second, ipfs.connect() as two:
        assert two.server.url == second.url
        assert fetch(two.url(two.add(b"x"))) == b"x"
        one.close()
        assert two.cat(two.add(b"y")) == b"y"


def test_a_store_that_cannot_be_used_is_a_clear_error(tmp_path, no_kernel):
    """A place that is no directory, or holds something else, is named."""
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ipfs.IPFSStreamError) as caught:
            ipfs.connect(repo=place)
        assert "file" in str(caught.value)


async def test_connect_async_is_a_context_manager_too(repo):
    """`async with connect_async()` needs no await of its own, and closes the client."""
    async with ipfs.connect_async() as client:
        assert await client.cat(await client.add(b"hello")) == b"hello"
    with pytest.raises(BadRequestError, match="closed"):
        await client.pins()
    with pytest.raises(BadRequestError, match="url"):
        async with ipfs.connect_async(token="x"):  # no secret
            pass


async def test_connect_async_and_its_blocking_twin(repo):
    """The async client works on the caller's loop, beside blocking ones of the same process."""
    async with await ipfs.connect_async() as client:
        added = await client.add(b"hello")
        twin = await asyncio.to_thread(ipfs.connect)
        try:
            assert twin.server == client.server
            assert await asyncio.to_thread(twin.cat, added) == b"hello"
        finally:
            await asyncio.to_thread(twin.close)
        assert await client.cat(added) == b"hello"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_connects_for_itself(repo):
    """A fork cannot use its parent's client, is told so, and gets its own by connecting."""
    code = """
import os
import ipfs_stream_nb as ipfs
client = ipfs.connect()
added = client.add(b"x", progress=False)
child = os.fork()
if child == 0:
    try:
        client.cat(added)
    except ipfs.IPFSStreamError as error:
        print("child:", error, flush=True)
    with ipfs.connect() as own:
        print(own.cat(added), flush=True)
    raise SystemExit
_, status = os.waitpid(child, 0)
print("parent:", client.cat(added), status)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],  # Python 3.12 warns of any fork
        env=os.environ | {"PYTHONASYNCIODEBUG": ""},  # see python()
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stderr == ""
    assert "child: this client was opened before the process forked" in done.stdout
    assert done.stdout.count("b'x'") == 2
    assert done.stdout.rstrip().endswith("0")


HEAVY = (
    "aiohttp",
    "aiortc",
    "av",
    "numpy",
    "ipywidgets",
    "anywidget",
    "tornado",
    "jupyter_server",
    "PIL",
    "tqdm",
    "lmdb",
)


def test_the_import_is_quick():
    """`import ipfs_stream_nb` takes under 150 ms of work, and nothing heavy comes with it."""
    code = """
import sys, time
started = time.process_time()
import ipfs_stream_nb
print(time.process_time() - started)
print(*sys.modules)
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    _, modules = runs[0].stdout.splitlines()
    assert not set(HEAVY) & set(modules.split())
    assert min(float(run.stdout.split()[0]) for run in runs) < 0.15


def test_connecting_loads_no_media_and_no_widgets(repo):
    """What only media and notebooks need is left until it is used."""
    done = python("import sys, ipfs_stream_nb as i; i.connect().close(); print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not {"av", "numpy", "ipywidgets", "anywidget", "PIL", "tqdm"} & set(done.stdout.split())


def test_the_package_is_where_these_tests_think():
    """The subprocesses above test this checkout, not an installed copy."""
    done = python("import ipfs_stream_nb; print(ipfs_stream_nb.__file__)")
    assert Path(done.stdout.strip()) == Path(ipfs.__file__)


def test_a_closed_port_in_the_record_is_passed_over(repo, tmp_path, monkeypatch):
    """A record of a server that is gone does not keep connect() from working."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("JPY_PARENT_PID", "4242")
    (tmp_path / "jpserver-4242.json").write_text(json.dumps({"url": "http://localhost:9/", "token": "t"}))
    with ipfs.connect() as client:
        assert client.server.embedded


def test_repo_asks_for_the_embedded_server(jupyter, tmp_path, monkeypatch):
    """With repo= the kernel's own server is left alone."""
    process, _, environ = jupyter
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", environ["JUPYTER_RUNTIME_DIR"])
    monkeypatch.setenv("JPY_PARENT_PID", str(process.pid))
    with ipfs.connect(repo=tmp_path / "mine") as client:
        assert client.server.embedded


def test_the_kernels_own_server_by_url(jupyter, monkeypatch):
    """Asked for by its URL, the server of this kernel needs no token, and the browser's cookie is good for it."""
    process, record, environ = jupyter
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", environ["JUPYTER_RUNTIME_DIR"])
    monkeypatch.setenv("JPY_PARENT_PID", str(process.pid))
    with ipfs.connect(record["url"]) as client:
        assert client.server.same_origin
        assert client.health()["status"] == "ok"


def test_tokens_are_never_in_the_default_url(repo):
    """A URL that goes into a page opens one content for some minutes, and nothing else."""
    with ipfs.connect() as client:
        added = client.add(b"x")
        url = client.url(added)
        assert str(client.server.token) not in url
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(url.replace("/ipfs/", "/ipfs-stream/stat/") + "x")
        with pytest.raises(BadRequestError, match="action"):
            client.url(added, action="nonsense")


# kinds of nodes


def test_an_operator_decides_about_the_node_behind_a_url():
    """node= does not go with a url, and only known kinds are taken."""
    with pytest.raises(BadRequestError, match=r"c\.IPFSStreamExtension\.node"):
        ipfs.connect("http://127.0.0.1:9/", node="kubo")
    with pytest.raises(BadRequestError, match="auto, embedded, kubo, not 'kobu'"):
        ipfs.connect(node="kobu")


def test_a_node_of_ones_own_kind(kubo, repo, monkeypatch):
    """node="kubo" adds to the daemon, over HTTP; the others to the store, and "auto" reads what the daemon has."""
    monkeypatch.setenv("IPFS_API", kubo.api)
    far = kubo.run("add", "-Q", data=os.urandom(1000))
    with ipfs.connect(node="kubo") as client:
        assert isinstance(client._session.client.node, RemoteNode)
        assert client.health()["node"]["kind"] == "kubo"
        added = client.add(os.urandom(1000), name="mine")
        assert len(client.cat(far)) == 1000
    assert str(added.cid) in kubo.run("pin", "ls", "--type=recursive")
    with ipfs.connect() as client:
        assert isinstance(client._session.client.node, DirectNode)
        assert not client.pins()
        assert len(client.cat(far)) == 1000
    with ipfs.connect(repo=repo.parent / "other", node="embedded") as client:
        assert client.health()["node"]["sources"] is None
        with pytest.raises(NotFoundError, match="nobody to fetch it from"):
            client.cat(far)


def test_without_a_daemon_there_is_no_kubo_node(repo):
    """node="kubo" says that there is none, and how to get one."""
    with pytest.raises(RetrievalError, match=r"no Kubo daemon was found.*ipfs daemon"):
        ipfs.connect(node="kubo")


def test_a_kernels_server_is_used_where_its_node_is_of_that_kind(jupyter, kubo, repo, monkeypatch):
    """A server with another kind of node is passed over, and the client says so."""
    process, _, environ = jupyter
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", environ["JUPYTER_RUNTIME_DIR"])
    monkeypatch.setenv("JPY_PARENT_PID", str(process.pid))
    monkeypatch.setenv("IPFS_API", kubo.api)
    with ipfs.connect(node="embedded") as client:
        assert not client.server.embedded
    with ipfs.connect(node="kubo") as client:
        assert client.server.embedded
        (reason,) = client._session.client.tried
        assert "its node is 'embedded', and 'kubo' was asked for" in reason
