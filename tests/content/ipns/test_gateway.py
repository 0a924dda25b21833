"""/ipns/ in the gateway: what is below a name is answered as what is below a CID, and kept as long as its record says."""

from __future__ import annotations

import urllib.parse

import aiohttp
import pytest

from gateway_site import Site
from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.gateway import GatewayRequest, GatewayResponse, GatewaySettings, respond
from ipfs_stream_nb.content.ipns.name import Name
from ipfs_stream_nb.content.ipns.record import MEDIA_TYPE, verify
from ipfs_stream_nb.content.ipns.resolver import NameResolver, ResolvedName
from ipfs_stream_nb.errors import BadRequestError, NotFoundError
from ipns_records import Owner

SITE = Site()
ROOT, HELLO = SITE.cids["root"], SITE.cids["hello"]
OWNER = Owner()
NAME = str(OWNER.name)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return tmp_path_factory.mktemp("named") / "repo"


@pytest.fixture
async def node(repo):
    async with await EmbeddedNode.open(repo, min_free=0) as node:
        with node.store.transfer() as transfer:
            transfer.put(list(SITE.blocks.items()))
        yield node


class Reply:
    def __init__(self, response: GatewayResponse, body: bytes) -> None:
        self.status, self.headers, self.body = response.status, dict(response.headers), body


@pytest.fixture
def ask(node):
    """Ask for a path below /ipns/, which stands for `target`."""

    async def ask(
        path: str,
        headers=None,
        *,
        method="GET",
        target=f"/ipfs/{ROOT}",
        ttl=70.9,
        record=b"",
        public=False,
        **query,
    ) -> Reply:
        query = {name.replace("_", "-"): value for name, value in query.items()}
        request = GatewayRequest(method, f"/ipns/{path}", query, {**(headers or {})})
        resolved = ResolvedName(target, ttl, record=record or None)
        response = await respond(
            node, request, settings=GatewaySettings(public_cache=public), resolved=resolved
        )
        body = b"".join([piece async for piece in response.body]) if response.body is not None else b""
        return Reply(response, body)

    return ask


async def test_a_file_below_a_name(ask, node):
    """The same bytes and headers as below the CID, but for the path and how long they may be kept."""
    named = await ask(f"{NAME}/hello.txt")
    request = GatewayRequest("GET", f"/ipfs/{ROOT}/hello.txt", {}, {})
    below_cid = await respond(node, request, settings=GatewaySettings())
    await below_cid.body.aclose()
    assert named.status == 200
    assert named.body == b"hello world\n"
    changed = {name for name, value in below_cid.headers if named.headers.get(name) != value}
    assert changed == {"X-Ipfs-Path", "Cache-Control"}
    assert named.headers["X-Ipfs-Path"] == f"/ipns/{NAME}/hello.txt"
    assert named.headers["Cache-Control"] == "private, max-age=70"
    assert named.headers["X-Ipfs-Roots"].split(",") == [str(ROOT), str(HELLO)]


async def test_ranges_head_and_shared_caches(ask):
    """What holds for /ipfs/ holds here."""
    part = await ask(f"{NAME}/hello.txt", {"Range": "bytes=1-2"})
    assert (part.status, len(part.body)) == (206, 2)
    head = await ask(f"{NAME}/hello.txt", method="HEAD", public=True)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Cache-Control"] == "public, max-age=70"


async def test_a_name_of_a_path(ask):
    """The name may stand for something below a CID."""
    direct = await ask(NAME, target=f"/ipfs/{ROOT}/hello.txt")
    assert direct.status == 200
    assert direct.headers["ETag"] == f'"{HELLO}"'
    assert direct.headers["X-Ipfs-Path"] == f"/ipns/{NAME}"
    raw = await ask(NAME, target=f"/ipfs/{ROOT}/hello.txt", format="raw")
    assert raw.headers["ETag"] == f'"{HELLO}.raw"'
    car = await ask(NAME, target=f"/ipfs/{ROOT}/hello.txt", format="car")
    assert car.headers["X-Ipfs-Roots"].split(",") == [str(ROOT), str(HELLO)]
    assert "immutable" not in car.headers["Cache-Control"]


async def test_what_the_client_has_is_not_sent_again(ask):
    """The ETag is the content's: it stays while the name stands for it, and goes when it does not."""
    etag = (await ask(NAME, target=f"/ipfs/{HELLO}")).headers["ETag"]
    again = await ask(NAME, {"If-None-Match": etag}, target=f"/ipfs/{HELLO}", ttl=5)
    assert (again.status, again.headers["Cache-Control"]) == (304, "private, max-age=5")
    below = await ask(NAME, {"If-None-Match": f'"{ROOT}"'}, target=f"/ipfs/{ROOT}/hello.txt")
    assert below.status == 200


async def test_a_directory_keeps_its_name(ask):
    """The redirect to the slash and the links stay below /ipns/; CIDs are linked below /ipfs/."""
    redirect = await ask(NAME)
    assert (redirect.status, redirect.headers["Location"]) == (301, f"./{NAME}/")
    assert redirect.headers["Cache-Control"] == "private, max-age=70"
    listing = await ask(f"{NAME}/", listing="1")
    assert f"Index of /ipns/{NAME}/" in listing.body.decode()
    base = f"https://host/base/ipns/{NAME}/"
    links = [part.split('"')[0] for part in listing.body.decode().split('href="')[1:]]
    targets = {urllib.parse.urljoin(base, link).partition("?")[0] for link in links}
    assert f"{base}hello.txt" in targets
    assert f"https://host/base/ipfs/{HELLO}" in targets
    assert all(target.startswith((base, "https://host/base/ipfs/")) for target in targets)
    assert listing.headers["Cache-Control"] == "private, max-age=70"
    long = await ask(f"{NAME}/", listing="1", ttl=86_400)
    assert long.headers["Cache-Control"] == "private, max-age=3600"


async def test_the_record_itself(ask):
    """`?format=ipns-record` and Accept give the verified bytes, to be kept as long as the record says."""
    record = OWNER.record(f"/ipfs/{ROOT}")
    by_query = await ask(NAME, record=record, format="ipns-record")
    by_accept = await ask(NAME, {"Accept": MEDIA_TYPE}, record=record)
    for reply in (by_query, by_accept):
        assert (reply.status, reply.body) == (200, record)
        assert reply.headers["Content-Type"] == MEDIA_TYPE
        assert reply.headers["Cache-Control"] == "private, max-age=70"
        assert reply.headers["Content-Disposition"].startswith("attachment")
        assert f"{NAME}.ipns-record" in reply.headers["Content-Disposition"]
    assert by_accept.headers["Content-Location"] == f"./{NAME}?format=ipns-record"
    again = await ask(NAME, {"If-None-Match": by_query.headers["ETag"]}, record=record, format="ipns-record")
    assert again.status == 304
    with pytest.raises(BadRequestError, match="only a name has"):
        await ask(f"{NAME}/hello.txt", record=record, format="ipns-record")
    with pytest.raises(NotFoundError, match="no signed record"):
        await ask("docs.ipfs.tech", format="ipns-record")


async def test_beside_kubos_gateway(publisher, publish, tmp_path):
    """The same requests to Kubo's own gateway: status, bytes, roots, ETag and max-age are the same."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "hello.txt").write_text("hello")
    (folder / "sub" / "x").write_text("x")
    root = publisher.run("add", "-Q", "-r", "--cid-version=1", str(folder))
    name = publish(f"/ipfs/{root}", "--ttl=50s")
    async with (
        await EmbeddedNode.open(tmp_path / "repo", min_free=0) as node,
        aiohttp.ClientSession(publisher.gateway) as http,
    ):
        for cid in [*publisher.run("refs", "-r", "-u", root).split(), root]:
            data = publisher.run_binary("block", "get", cid)
            await node.block_put(data, codec=CID.parse(cid).codec)
        async with http.get(f"/ipns/{name}?format=ipns-record") as answer:
            record = await answer.read()
        verified = verify(Name.parse(name), record)
        for path, query in [
            (f"/ipns/{name}", {}),
            (f"/ipns/{name}/hello.txt", {}),
            (f"/ipns/{name}/sub/x", {}),
            (f"/ipns/{name}/sub", {}),
            (f"/ipns/{name}/hello.txt", {"format": "raw"}),
            (f"/ipns/{name}", {"format": "ipns-record"}),
        ]:
            resolved = ResolvedName(verified.value, verified.ttl, record=record)
            request = GatewayRequest("GET", path, query, {})
            ours = await respond(
                node, request, settings=GatewaySettings(public_cache=True), resolved=resolved
            )
            body = b"".join([piece async for piece in ours.body]) if ours.body is not None else b""
            headers = dict(ours.headers)
            async with http.get(path, params=query, allow_redirects=False) as theirs:
                assert (path, ours.status) == (path, theirs.status)
                if ours.status == 301:
                    assert urllib.parse.urljoin(path, headers["Location"]) == theirs.headers["Location"]
                    continue
                assert body == await theirs.read()
                assert headers["Content-Type"] == theirs.headers["Content-Type"]
                if "format" in query and query["format"] == "ipns-record":
                    continue
                assert headers["X-Ipfs-Roots"] == theirs.headers["X-Ipfs-Roots"]
                assert headers["ETag"] == theirs.headers["ETag"]
                age = int(theirs.headers["Cache-Control"].removeprefix("public, max-age="))
                assert 40 < age <= 50
                assert headers["Cache-Control"] == "public, max-age=50"


async def test_a_node_reads_below_names(repo):
    """stat, ls, cat and CARs take the path; a node without a resolver says what it needs."""

    class Source:
        name = "source"

        async def ipns_record(self, _name: str) -> bytes:
            return OWNER.record(f"/ipfs/{ROOT}")

    store = BlockStore.open(repo, min_free=0)
    async with EmbeddedNode(store, names=NameResolver(None, [Source()])) as node:
        for path in (f"/ipns/{NAME}/hello.txt", f"ipns://{NAME}/hello.txt"):
            assert (await node.stat(path)).cid == HELLO
            assert await node.read(path, 0, 5) == await node.read(f"{ROOT}/hello.txt", 0, 5)
        listed = [entry.name async for entry in node.ls(f"/ipns/{NAME}")]
        assert listed == [entry.name async for entry in node.ls(str(ROOT))]
    async with await EmbeddedNode.open(repo, min_free=0) as node:
        with pytest.raises(BadRequestError, match="Kubo daemon"):
            await node.stat(f"/ipns/{NAME}/hello.txt")
