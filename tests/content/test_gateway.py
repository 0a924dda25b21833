"""The gateway without a server: what each request is answered with."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import aclosing
from email.message import Message
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import range_oracle
from gateway_site import CLIP, HTML, MANY, ODD_NAMES, Site
from ipfs_stream_nb.content import mime, reading
from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.car import CarDecoder, encode_header, encode_section
from ipfs_stream_nb.content.cid import CID, RAW
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.content.gateway import GatewayRequest, GatewaySettings, listing, respond
from ipfs_stream_nb.content.gateway.messages import SANDBOX, content_disposition
from ipfs_stream_nb.errors import (
    BadCIDError,
    BadRequestError,
    CorruptContentError,
    IPFSStreamError,
    NotFoundError,
    RetrievalError,
    RetrievalTimeoutError,
)
from kubo_nodes import node_of

SITE = Site()
ABSENT = (NotFoundError, RetrievalTimeoutError)
"""How a node says that nobody has a block: a Kubo daemon only gives up looking for it."""
EMBEDDED_ONLY = pytest.mark.parametrize("node", ["embedded"], indirect=True)
DEFAULTS = GatewaySettings()
ROOT = SITE.cids["root"]


class Headers(dict):
    """Request headers that do not mind the case."""

    def __init__(self, headers):
        super().__init__({name.lower(): value for name, value in headers.items()})

    def get(self, name):
        """The field's value."""
        return super().get(name.lower())


class Reply:
    """A response with its body read to the end."""

    def __init__(self, response, body):
        self.status, self.body = response.status, body
        self.headers = Message()
        for name, value in response.headers:
            assert name not in self.headers
            assert re.fullmatch(r"[\x20-\x7e]*", value)
            self.headers[name] = value

    def __getitem__(self, name):
        return self.headers[name]


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A store with the site in it."""
    path = tmp_path_factory.mktemp("site")
    fill(path)
    return path


def fill(path):
    """Put the site's blocks into the store at `path`, unpinned."""
    with BlockStore.open(path) as store, store.transfer() as transfer:
        transfer.put(list(SITE.blocks.items()))


@pytest.fixture(scope="module")
def daemon(kubo):
    """The address of a Kubo daemon with the site in it, as raw blocks: it knows not all of the codecs."""
    blocks = [(CID.of(data, RAW), data) for data in SITE.blocks.values()]
    car = encode_header([blocks[0][0]]) + b"".join(encode_section(*block) for block in blocks)
    kubo.run("dag", "import", "--pin-roots=false", data=car)
    return kubo.api


@pytest.fixture(autouse=True)
def _kept_stats(monkeypatch):
    """What was looked at is not looked at again, however long a busy machine takes."""
    monkeypatch.setattr(reading, "STAT_CACHE_SECONDS", 3600.0)


@pytest.fixture(params=["embedded", "kubo"])
async def node(request, tmp_path):
    """A node over the site: the embedded one, or one whose content a Kubo daemon holds."""
    if request.param == "embedded":
        opened = await EmbeddedNode.open(request.getfixturevalue("repo"))
    else:
        opened = node_of(request.getfixturevalue("daemon"), tmp_path / "cache", patience=1.0)
    async with opened as node:
        yield node


@pytest.fixture
def asked_for(node, monkeypatch):
    """The CIDs that the node's store is asked for, as a list that grows."""
    cids = []
    true_get = node.reader.source.get

    def get(cid, start=0, stop=None):
        cids.append(cid)
        return true_get(cid, start, stop)

    monkeypatch.setattr(node.reader.source, "get", get)
    return cids


@pytest.fixture
def ask(node):
    """Ask for a path below /ipfs/, with query parameters as keywords (`_` for `-`)."""

    async def ask(path, headers=None, *, method="GET", config=DEFAULTS, **query):
        query = {name.replace("_", "-"): value for name, value in query.items()}
        request = GatewayRequest(method, f"/ipfs/{path}", query, Headers(headers or {}))
        response = await respond(node, request, settings=config)
        body = b""
        if response.body is not None:
            async with aclosing(response.body) as pieces:
                body = b"".join([piece async for piece in pieces])
        reply = Reply(response, body)
        if reply["Content-Length"] is not None and method != "HEAD":
            assert int(reply["Content-Length"]) == len(body)
        return reply

    return ask


def blocks_of(car):
    """The CIDs of a CAR's blocks, each verified, in order."""
    decoder = CarDecoder()
    blocks = decoder.feed(car)
    decoder.finish()
    for cid, data in blocks:
        cid.verify(data)
    return [cid for cid, _ in blocks]


# files


async def test_a_file(ask):
    """A file in a directory: all of the specification's headers, and the bytes."""
    reply = await ask(f"{ROOT}/clip.mp4")
    clip = SITE.cids["clip"]
    assert (reply.status, reply.body) == (200, CLIP)
    assert dict(reply.headers.items()) == {
        "X-Ipfs-Path": f"/ipfs/{ROOT}/clip.mp4",
        "X-Ipfs-Roots": f"{ROOT},{clip}",
        "ETag": f'"{clip}"',
        "Content-Type": "video/mp4",
        "Content-Length": str(len(CLIP)),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=29030400, immutable",
        "Content-Security-Policy": "default-src 'none'; media-src 'self'; sandbox allow-same-origin",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
    }


async def test_public_cache_is_a_setting(ask):
    """Shared caches are let in by the setting alone."""
    reply = await ask(ROOT, config=GatewaySettings(public_cache=True), format="raw")
    assert reply["Cache-Control"] == "public, max-age=29030400, immutable"


@pytest.mark.parametrize("path", ["root/clip.mp4", "clip", "empty", "root/page.html", "root/link"])
async def test_head_has_the_headers_of_get(ask, path):
    """HEAD: the same headers, Content-Length too, and no body; a Range does not count for it."""
    name, _, rest = path.partition("/")
    path = "/".join([str(SITE.cids[name]), *([rest] if rest else [])])
    get = await ask(path)
    head = await ask(path, {"Range": "bytes=1-2"}, method="HEAD")
    assert head.headers.items() == get.headers.items()
    assert (head.status, head.body) == (200, b"")


async def test_other_methods(node):
    """405 with Allow."""
    request = GatewayRequest("POST", f"/ipfs/{ROOT}", {}, Headers({}))
    response = await respond(node, request, settings=DEFAULTS)
    assert (response.status, response.headers, response.body) == (405, [("Allow", "GET, HEAD")], None)


async def test_identity_probe(ask):
    """The trustless gateway's probe path: an identity CID of no bytes is always there."""
    for method in ("GET", "HEAD"):
        reply = await ask("bafkqaaa", method=method, format="raw")
        assert (reply.status, reply.body, reply["Content-Length"]) == (200, b"", "0")
    assert (await ask("bafkqaaa", {"Cache-Control": "only-if-cached"})).status == 200


async def test_symlinks(ask):
    """At the end of a path a symlink is its target's text, as in boxo; on the way it is followed."""
    reply = await ask(f"{ROOT}/link")
    assert (reply.status, reply.body, reply["Content-Type"]) == (200, b"sub/deep/data.json", "inode/symlink")
    assert reply["Content-Disposition"].startswith("attachment")
    assert (await ask(f"{ROOT}/subway/data.json")).body == b'{"a": 1}'


# ranges


@pytest.mark.parametrize("seed", range(4))
async def test_ranges_of_a_file_agree_with_the_oracle(ask, seed):
    """Status, Content-Range, length and bytes of single and multipart answers, against the independent oracle."""
    import random  # noqa: PLC0415

    rng = random.Random(seed)
    data = SITE.blocks[SITE.cids["hello"]]
    for _ in range(400):
        specs = [
            rng.choice([f"{a}-{b}", f"{a}-", f"-{a}", "x"][: 3 + (rng.random() < 0.02)])
            for a, b in [
                (rng.randint(0, 14), rng.randint(0, 14)) for _ in range(rng.choice([1, 1, 2, 3, 10]))
            ]
        ]
        header = "bytes=" + ", ".join(specs)
        reply = await ask(SITE.cids["hello"], {"Range": header})
        status, parts = range_oracle.response(header, data)
        assert reply.status == status, header
        if len(parts) > 1:
            boundary = reply["Content-Type"].removeprefix("multipart/byteranges; boundary=")
            sections = reply.body.split(f"--{boundary}".encode())[1:-1]
            found = []
            for section in sections:
                head, _, payload = section.partition(b"\r\n\r\n")
                assert b"Content-Type: text/plain; charset=utf-8" in head
                found.append((re.search(r"Content-Range: (.*)", head.decode())[1].strip(), payload[:-2]))
            assert found == parts
            assert reply["Content-Range"] is None
        else:
            assert reply["Content-Range"] == (parts[0][0] or None)
            assert status == 416 or reply.body == parts[0][1]


@EMBEDDED_ONLY
async def test_ranges_read_only_what_is_needed(asked_for, ask):
    """Two ranges of a file in 1000-byte blocks load their blocks alone."""
    cid = SITE.cids["clip"]
    await ask(cid, method="HEAD")
    asked_for.clear()
    reply = await ask(cid, {"Range": "bytes=100-199,15500-15599"})
    assert reply.status == 206
    leaves = [one for one in asked_for if one.codec == RAW]
    assert leaves == [CID.of(CLIP[0:1000]), CID.of(CLIP[15000:16000])]


async def test_an_unsatisfiable_range(ask):
    """416 names the size, and is an error message in JSON that no cache keeps."""
    reply = await ask(SITE.cids["clip"], {"Range": "bytes=99999-"})
    assert (reply.status, reply["Content-Range"]) == (416, f"bytes */{len(CLIP)}")
    assert (reply["Content-Type"], reply["Cache-Control"]) == ("application/json", "no-store")
    assert json.loads(reply.body)["code"] == "bad_request"


@pytest.mark.parametrize(
    ("if_range", "status"),
    [("{etag}", 206), ("W/{etag}", 200), ('"stale"', 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)],
)
async def test_if_range(ask, if_range, status):
    """A range is given for the same strong ETag alone; anything else gets the whole, even where 416 was due."""
    cid = SITE.cids["clip"]
    headers = {"Range": "bytes=0-9", "If-Range": if_range.format(etag=f'"{cid}"')}
    assert (await ask(cid, headers)).status == status
    late = await ask(cid, headers | {"Range": "bytes=99999-"})
    assert late.status == (416 if status == 206 else 200)


# conditional requests


@pytest.mark.parametrize(
    "path", ["{root}/hello.txt", "{hello}", "{root}/link", "{root}/sub/", "{root}/site/"]
)
@pytest.mark.parametrize("form", ["{etag}", "W/{etag}", '"a", {etag}', "*"])
async def test_not_modified(ask, path, form):
    """If-None-Match of any form gives 304 with the ETag and Cache-Control of the 200, and no body."""
    path = path.format(**SITE.cids)
    full = await ask(path)
    reply = await ask(path, {"If-None-Match": form.format(etag=full["ETag"]), "Range": "bytes=0-1"})
    assert (reply.status, reply.body) == (304, b"")
    assert (reply["ETag"], reply["Cache-Control"]) == (full["ETag"], full["Cache-Control"])
    assert (await ask(path, {"If-None-Match": '"other"'})).status == 200


@EMBEDDED_ONLY
async def test_not_modified_needs_no_work(asked_for, ask):
    """A bare CID that the client has is answered without a block, be it here or not; `*` must look."""
    absent = SITE.cids["absent"]
    for suffix, query in (("", {}), (".raw", {"format": "raw"})):
        reply = await ask(absent, {"If-None-Match": f'"{absent}{suffix}"'}, **query)
        assert reply.status == 304
    assert asked_for == []
    with pytest.raises(NotFoundError):
        await ask(absent, {"If-None-Match": "*"})


async def test_if_match(ask):
    """If-Match lets the same content through, and is a 412 for another; dates are ignored."""
    cid = SITE.cids["hello"]
    assert (await ask(cid, {"If-Match": f'"{cid}"'})).status == 200
    with pytest.raises(BadRequestError) as caught:
        await ask(cid, {"If-Match": '"other"', "If-None-Match": f'"{cid}"'})
    assert caught.value.status == 412
    dates = {
        "If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT",
        "If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT",
    }
    assert (await ask(cid, dates)).status == 200


@EMBEDDED_ONLY
async def test_only_if_cached(ask):
    """What is here is given; what is not, or not whole, is a 412."""
    cached = {"Cache-Control": "no-transform, Only-If-Cached"}
    assert (await ask(SITE.cids["hello"], cached)).status == 200
    for path in (SITE.cids["absent"], f"{SITE.cids['holey']}/gone.txt"):
        with pytest.raises(BadRequestError) as caught:
            await ask(path, cached)
        assert caught.value.status == 412


# untrusted content


@pytest.mark.parametrize(
    "path", ["{root}/page.html", "{root}/picture.svg", "{root}/sneaky.mp4", "{page}", "{root}/site/"]
)
@pytest.mark.parametrize("query", [{}, {"filename": "x.mp4"}, {"filename": "x.txt", "download": "false"}])
async def test_active_content_is_never_inline(ask, path, query):
    """HTML and SVG, by any name and any query, are attachments in a sandbox."""
    reply = await ask(path.format(**SITE.cids), **query)
    assert reply.headers.get_content_disposition() == "attachment"
    assert reply["Content-Type"] in {"text/html", "image/svg+xml"}
    assert reply["Content-Security-Policy"] == SANDBOX
    assert reply["X-Content-Type-Options"] == "nosniff"


async def test_only_media_in_place_may_load_itself(ask):
    """The page that a browser makes around a video may load it; all else, the same video as a download too, may not."""
    assert "media-src 'self'" in (await ask(f"{ROOT}/clip.mp4"))["Content-Security-Policy"]
    assert (await ask(f"{ROOT}/clip.mp4", download="true"))["Content-Security-Policy"] == SANDBOX
    assert (await ask(f"{ROOT}/hello.txt"))["Content-Security-Policy"] == SANDBOX


async def test_every_kind_of_answer_has_the_safe_headers(ask):
    """Redirects, 304s, 416s, listings, blocks and CARs too."""
    cid = SITE.cids["hello"]
    for reply in [
        await ask(f"{ROOT}/sub"),
        await ask(f"{ROOT}/"),
        await ask(cid, {"If-None-Match": "*"}),
        await ask(cid, {"Range": "bytes=99-"}),
        await ask(cid, format="raw"),
        await ask(cid, format="car"),
        await ask(SITE.cids["cbor"]),
    ]:
        assert "default-src 'none'" in reply["Content-Security-Policy"]
        assert re.search(r"\bsandbox\b", reply["Content-Security-Policy"])
        assert "allow-scripts" not in reply["Content-Security-Policy"]
        assert reply["X-Content-Type-Options"] == "nosniff"
        assert reply["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_no_service_worker(ask):
    """A script is not handed out for a service worker, whatever the path."""
    for path in (ROOT, f"{ROOT}/page.html"):
        with pytest.raises(BadRequestError, match="service worker"):
            await ask(path, {"Service-Worker": "script"})


# names


async def test_content_disposition(ask):
    """`download` and `filename`, alone and together, and the attachment's name where there is none."""
    cid = SITE.cids["hello"]

    async def disposition(path=cid, **query):
        return (await ask(path, **query))["Content-Disposition"]

    assert await disposition() is None
    assert await disposition(filename="a.txt") == 'inline; filename="a.txt"'
    assert await disposition(filename="a.txt", download="true") == 'attachment; filename="a.txt"'
    assert await disposition(f"{ROOT}/hello.txt", download="true") == 'attachment; filename="hello.txt"'
    assert await disposition(download="true") == f'attachment; filename="{cid}"'
    assert await disposition(f"{ROOT}/site/") == 'attachment; filename="index.html"'
    assert await disposition(format="raw") == f'attachment; filename="{cid}.bin"'
    assert await disposition(format="car") == f'attachment; filename="{cid}.car"'
    assert (
        await disposition(f"{ROOT}/hello.txt", format="car") == f'attachment; filename="{ROOT}_hello.txt.car"'
    )
    assert await disposition(format="car", filename="x.car") == 'attachment; filename="x.car"'
    with pytest.raises(BadRequestError, match="255"):
        await disposition(filename="x" * 256)


@given(st.text(max_size=60))
def test_any_filename_makes_a_safe_header(name):
    """Whatever the name, the header is printable ASCII, and a MIME parser reads back the name or a safe one."""
    value = content_disposition("attachment", name)
    assert re.fullmatch(r"[\x20-\x7e]+", value)
    message = Message()
    message["Content-Disposition"] = value.partition("; filename*=")[0]
    encoded = value.partition("; filename*=UTF-8''")[2]
    found = unquote(encoded) or message.get_filename()
    assert not set(found) & set("/\\\r\n\0")
    if re.fullmatch(r"[\w .()'-]+", name) and name == name.strip():
        assert found == name


async def test_filename_refines_the_type(ask):
    """`?filename=` counts as the name when the type is told, and the bytes still win."""
    assert (await ask(SITE.cids["hello"], filename="x.css"))["Content-Type"] == "text/css; charset=utf-8"
    assert (await ask(SITE.cids["page"], filename="x.mp4"))["Content-Type"] == "text/html"


@pytest.mark.parametrize("name", [*ODD_NAMES, "hello.txt"])
async def test_odd_names(ask, name):
    """Names with anything in them are reached percent-encoded; X-Ipfs-Path is encoded where it has to be."""
    from urllib.parse import quote  # noqa: PLC0415

    reply = await ask(f"{ROOT}/{quote(name, safe='')}")
    assert reply.body == b"hello world\n"
    path = f"/ipfs/{ROOT}/{name}"
    assert reply["X-Ipfs-Path"] == (path if re.fullmatch(r"[\x20-\x7e]+", path) else quote(path))


async def test_raw_utf8_in_a_url(ask):
    """A client that does not encode is understood: HTTP libraries hand out its bytes as Latin-1."""
    name = "ünï%20côde%20%23%3F%25&.txt".encode().decode("latin-1")
    assert (await ask(f"{ROOT}/{name}")).body == b"hello world\n"


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("", BadCIDError, "empty"),
        ("nonsense", BadCIDError, "nonsense"),
        ("ipfs/{root}", BadRequestError, "/ipfs/ipfs/"),
        ("{root}/%", BadRequestError, "hexadecimal"),
        ("{root}/%2", BadRequestError, "hexadecimal"),
        ("{root}/%zz", BadRequestError, "hexadecimal"),
        ("{root}/a%2Fb", BadRequestError, "slash"),
        ("{root}%2Fhello.txt", BadRequestError, "slash"),
        ("{root}/%ff", BadRequestError, "UTF-8"),
        ("{root}/ → ", BadRequestError, "percent-encoded"),
        ("{root}/a%00", BadRequestError, "NUL"),
        ("{root}/..", BadRequestError, ".."),
        ("{root}/sub/../hello.txt", BadRequestError, ".."),
        ("{root}/%2e%2e/x", BadRequestError, ".."),
        ("{root}/.", BadRequestError, "."),
        ("{root}/missing.txt", NotFoundError, "missing.txt"),
        ("{root}/hello.txt/x", IPFSStreamError, "hello.txt"),
        ("{root}/loop/x", IPFSStreamError, "symlink"),
        ("{root}/out/x", IPFSStreamError, "symlink"),
        ("{absent}", ABSENT, "{absent}"),
        ("{not-unixfs}", IPFSStreamError, ""),
        ("{unknown-codec}", IPFSStreamError, ""),
    ],
)
async def test_bad_paths(ask, path, error, text):
    """Each bad path is a clear error, for GET and HEAD alike, with a status under 500 where it is the path's fault."""
    for method in ("GET", "HEAD"):
        with pytest.raises(error, match=re.escape(text.format(**SITE.cids)) or None) as caught:
            await ask(path.format(**SITE.cids), method=method)
        assert caught.value.status in {400, 404, 415, 502, 504}


async def test_other_namespaces(node):
    """A name that was not resolved, and anything else outside of /ipfs/, is refused by name."""
    for path in ("/ipns/k51abc", "/ipns/docs.ipfs.tech/", "/", "/ipfs", ""):
        request = GatewayRequest("GET", path, {}, Headers({}))
        with pytest.raises(BadRequestError, match=r"names are not resolved|/ipfs/"):
            await respond(node, request, settings=DEFAULTS)


# directories


async def test_redirect_to_the_slash(ask):
    """A directory without its slash redirects to it, relatively, with the query kept, good at any base URL."""
    for base in ("/", "/user/a%40b/"):
        reply = await ask(f"{ROOT}/sub", filename="a b")
        assert reply.status == 301
        at = urljoin(f"http://host{base}ipfs/{ROOT}/sub?filename=a+b", reply["Location"])
        assert at == f"http://host{base}ipfs/{ROOT}/sub/?filename=a+b"
        bare = await ask(ROOT)
        assert urljoin(f"http://host{base}ipfs/{ROOT}", bare["Location"]) == f"http://host{base}ipfs/{ROOT}/"


async def test_redirect_of_a_name_with_a_colon(ask):
    """A name that looks like a scheme does not make the redirect absolute."""
    reply = await ask(f"{ROOT}/http:")
    assert urljoin(f"http://host/ipfs/{ROOT}/http:", reply["Location"]) == f"http://host/ipfs/{ROOT}/http%3A/"


async def test_index_html(ask):
    """index.html stands for its directory, as an attachment with its own ETag; `?listing=1` and JSON do not use it."""
    reply = await ask(f"{ROOT}/site/")
    assert (reply.body, reply["ETag"]) == (HTML, f'"{SITE.cids["page"]}"')
    assert reply["X-Ipfs-Roots"] == f"{ROOT},{SITE.cids['site']}"
    assert b"Index of" in (await ask(f"{ROOT}/site/", listing="1")).body
    listed = json.loads((await ask(f"{ROOT}/site/", {"Accept": "application/json"})).body)
    assert [entry["name"] for entry in listed["entries"]] == ["a.txt", "index.html"]
    assert b"Index of" in (await ask(f"{ROOT}/odd-site/")).body


class Links(HTMLParser):
    """The links of a page and its elements."""

    def __init__(self, page):
        super().__init__()
        self.links, self.elements, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_data(self, data):
        self.text.append(data)


async def test_listing_page(ask):
    """Every entry with a relative link that leads to it at any base URL; markup in names is text; no script."""
    reply = await ask(f"{ROOT}/")
    assert (reply.status, reply["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert reply["Cache-Control"] == "private, max-age=3600"
    page = Links(reply.body.decode())
    assert not {"script", "img", "iframe", "form", "link"} & set(page.elements)
    for base in ("/", "/user/a%40b/"):
        at = f"http://host{base}ipfs/{ROOT}/"
        paths = [urlsplit(urljoin(at, link)).path for link in page.links]
        assert all(path.startswith(f"{base}ipfs/") for path in paths)
        names = [unquote(path.rpartition("/")[2]) for path in paths if path.startswith(f"{base}ipfs/{ROOT}/")]
        assert {"clip.mp4", "site", "many", *ODD_NAMES} <= set(names)
    assert "<img src=x onerror=alert(1)>.txt" in page.text
    below = Links((await ask(f"{ROOT}/sub/deep/")).body.decode())
    at = f"http://host/x/ipfs/{ROOT}/sub/deep/"
    assert urljoin(at, below.links[0]) == f"http://host/x/ipfs/{ROOT}/sub/"
    assert urlsplit(urljoin(at, below.links[2])).path == f"/x/ipfs/{SITE.cids['data']}"
    doubled = Links((await ask(f"{ROOT}//sub/deep/")).body.decode())
    assert doubled.links[2] == f"../{below.links[2]}"  # browsers count empty segments


async def test_listing_of_a_hostile_directory(ask):
    """Names that no path can lead to are left out."""
    page = Links((await ask(f"{SITE.cids['hostile']}/")).body.decode())
    assert [link for link in page.links if link.startswith("./")] == ["./ok"]


async def test_the_style_is_allowed_by_its_hash(ask):
    """The page's policy has the hash of its own style element, and lets nothing else load."""
    import base64  # noqa: PLC0415

    reply = await ask(f"{ROOT}/bare/")
    style = re.search(rb"<style>(.*?)</style>", reply.body, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in reply["Content-Security-Policy"]
    assert b"empty" in reply.body


def test_the_listing_version_goes_up_with_every_change():
    """The page as it is at this VERSION; where it changes, raise VERSION and put the new hash here."""
    from ipfs_stream_nb.content.gateway.negotiation import ContentPath  # noqa: PLC0415
    from ipfs_stream_nb.content.node import Entry  # noqa: PLC0415

    cid = CID.parse("bafkqaaa")
    page = listing.Page(
        ContentPath("ipfs", str(cid), ("a",), True, 2), str(cid), [Entry("b", cid, 1536)], 2, True, {}
    )
    digest = hashlib.sha256(listing.as_html(page) + listing.as_json(page)).hexdigest()[:16]
    assert (listing.VERSION, digest) == (1, "359fb1f364191d48")


async def test_pages_of_a_large_directory(ask):
    """A sharded directory comes in pages of bounded length that have each entry once, as HTML and as JSON."""
    config = GatewaySettings(listing_entries=100)
    names, number = [], 1
    while number is not None:
        reply = await ask(f"{ROOT}/many/", {"Accept": "application/json"}, config=config, page=str(number))
        listed = json.loads(reply.body)
        assert reply["Content-Type"] == "application/json"
        names += [entry["name"] for entry in listed["entries"]]
        assert len(listed["entries"]) <= 100
        number = listed["next_page"]
    assert sorted(names) == MANY
    page = Links((await ask(f"{ROOT}/many/", config=config, page="2", listing="1")).body.decode())
    assert {"?page=1&listing=1", "?page=3&listing=1"} == {link for link in page.links if "page=" in link}
    for bad in ("0", "-1", "x", "1" * 5000, "٣"):
        with pytest.raises(BadRequestError, match="page"):
            await ask(f"{ROOT}/many/", page=bad)
    with pytest.raises(IPFSStreamError, match="200,000"):
        await ask(f"{ROOT}/many/", page="201")


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/json", True),
        ("application/json, text/plain, */*", True),
        ("text/html, application/json;q=0.5", False),
        ("text/html;q=0.4, application/json;q=0.5", True),
        ("application/json;q=0", False),
        ("*/*", False),
        ("", False),
    ],
)
async def test_a_listing_in_json_or_html(ask, accept, is_json):
    """Accept decides by its weights; each kind has an ETag of its own."""
    reply = await ask(f"{ROOT}/sub/", {"Accept": accept})
    assert reply["Content-Type"].startswith("application/json" if is_json else "text/html")
    assert ("-json-" in reply["ETag"]) is is_json
    assert reply["Vary"] == "Accept"
    assert (await ask(f"{ROOT}/sub/", {"Accept": accept}, format="json"))[
        "Content-Type"
    ] == "application/json"


# formats


async def test_raw_blocks(ask):
    """A block as it is, by format or by Accept, with ranges; a path leads to its block."""
    root = SITE.cids["clip"]
    block = SITE.blocks[root]
    for reply in [
        await ask(root, format="raw"),
        await ask(root, {"Accept": "application/vnd.ipld.raw"}),
        await ask(f"{ROOT}/clip.mp4", format="raw"),
    ]:
        assert (reply.status, reply.body) == (200, block)
        assert (reply["Content-Type"], reply["ETag"]) == ("application/vnd.ipld.raw", f'"{root}.raw"')
        assert reply["Accept-Ranges"] == "bytes"
    assert (await ask(root, {"Range": "bytes=-5"}, format="raw")).body == block[-5:]
    assert (await ask(root, method="HEAD", format="raw"))["Content-Length"] == str(len(block))
    for method in ("GET", "HEAD"):
        with pytest.raises(ABSENT):
            await ask(SITE.cids["absent"], method=method, format="raw")


@pytest.mark.parametrize(
    ("accept", "location"),
    [
        ("application/vnd.ipld.raw", "{cid}?format=raw"),
        (
            "application/vnd.ipld.car; version=1; order=dfs; dups=n",
            "{cid}?car-version=1&car-order=dfs&car-dups=n&format=car",
        ),
    ],
)
async def test_content_location(ask, accept, location):
    """What Accept chose has a URL of its own, relative, so that caches keep the formats apart."""
    cid = SITE.cids["hello"]
    reply = await ask(cid, {"Accept": accept})
    assert reply["Content-Location"] == "./" + location.format(cid=cid)
    assert reply["Vary"] == "Accept"
    by_query = await ask(cid, {"Accept": accept}, format="raw")
    assert by_query["Content-Location"] is None
    assert by_query["Vary"] is None


@pytest.mark.parametrize(
    ("accept", "mime_type"),
    [
        ("text/html,*/*;q=0.8", "text/plain"),
        ("application/vnd.ipld.raw", "application/vnd.ipld.raw"),
        ("*/*, application/vnd.ipld.raw", "application/vnd.ipld.raw"),
        ("application/vnd.ipld.raw;q=0.5, */*", "text/plain"),
        ("application/vnd.ipld.raw;q=0.5, application/vnd.ipld.car;q=0.9", "application/vnd.ipld.car"),
        ("application/vnd.ipld.car;q=0, application/vnd.ipld.raw;q=0.1", "application/vnd.ipld.raw"),
        ("APPLICATION/VND.IPLD.RAW", "application/vnd.ipld.raw"),
        ("application/vnd.ipld.raw;q=nonsense, */*", "text/plain"),
        ("application/vnd.ipld.unheard-of, */*;q=0.1", "text/plain"),
        ("video/*", "text/plain"),
        (",;,=", "text/plain"),
    ],
)
async def test_accept(ask, accept, mime_type):
    """Accept is weighted; generic types mean the content itself; what cannot be read is left out."""
    reply = await ask(SITE.cids["hello"], {"Accept": accept})
    assert reply["Content-Type"].partition(";")[0] == mime_type


@pytest.mark.parametrize(
    ("query", "accept", "status"),
    [
        ({"format": "raw2"}, "", 400),
        ({"format": "ipns-record"}, "", 400),
        ({"format": "tar"}, "", 406),
        ({"format": "dag-cbor"}, "", 406),
        ({"format": "cbor"}, "", 406),
        ({}, "application/vnd.ipld.unheard-of", 406),
        ({}, "application/x-tar", 406),
    ],
)
async def test_formats_that_there_are_not(ask, query, accept, status):
    """Unknown formats are 400, known ones that cannot be had are 406, naming what can."""
    with pytest.raises(BadRequestError, match=r"raw|IPNS") as caught:
        await ask(SITE.cids["hello"], {"Accept": accept}, **query)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("name", "mime_type", "suffix"),
    [
        ("cbor", "application/vnd.ipld.dag-cbor", "dag-cbor"),
        ("dag-json", "application/vnd.ipld.dag-json", "dag-json"),
        ("json", "application/json", "json"),
        ("plain-cbor", "application/cbor", "cbor"),
    ],
)
async def test_blocks_of_other_codecs(ask, name, mime_type, suffix):
    """DAG-CBOR and its kin are their bytes under their own type; another codec of the same is not made."""
    cid = SITE.cids[name]
    for query in ({}, {"format": suffix}):
        reply = await ask(cid, **query)
        assert (reply.status, reply.body) == (200, SITE.blocks[cid])
        assert (reply["Content-Type"], reply["ETag"]) == (mime_type, f'"{cid}.{suffix}"')
        assert (reply["Content-Disposition"] is None) is mime.inline_allowed(mime_type)
    assert (await ask(cid, format="raw"))["Content-Type"] == "application/vnd.ipld.raw"
    with pytest.raises(BadRequestError) as caught:
        await ask(cid, format="dag-json" if suffix == "dag-cbor" else "dag-cbor")
    assert caught.value.status == 406


# CARs


async def test_car_of_a_file(ask):
    """The whole DAG, depth first, each block once and verified; the headers of the specification."""
    cid = SITE.cids["clip"]
    reply = await ask(cid, format="car")
    blocks = blocks_of(reply.body)
    assert blocks[0] == cid
    assert len(blocks) == len(set(blocks))
    assert b"".join(SITE.blocks[one] for one in blocks if one.codec == RAW) == CLIP
    assert reply["Content-Type"] == "application/vnd.ipld.car; version=1; order=dfs; dups=n"
    assert (reply["Accept-Ranges"], reply["Content-Length"]) == ("none", None)
    assert reply["ETag"].startswith(f'W/"{cid}.car.')
    assert reply["Cache-Control"] == "private, max-age=29030400, immutable"
    ranged = await ask(cid, {"Range": "bytes=0-9"}, format="car")
    assert (ranged.status, ranged.body) == (200, reply.body)


async def test_car_scopes(ask):
    """dag-scope: the path's blocks always, then one block, the entity, or all below."""
    sub, deep, data = SITE.cids["sub"], SITE.cids["deep"], SITE.cids["data"]

    async def blocks(path, **query):
        return blocks_of((await ask(path, format="car", **query)).body)

    assert await blocks(f"{ROOT}/sub", dag_scope="block") == [ROOT, sub]
    assert await blocks(f"{ROOT}/sub", dag_scope="entity") == [ROOT, sub]
    assert (
        await blocks(f"{ROOT}/sub", dag_scope="all") == await blocks(f"{ROOT}/sub") == [ROOT, sub, deep, data]
    )
    many = await blocks(SITE.cids["many"], dag_scope="entity")
    assert len(many) > 2
    assert SITE.cids["hello"] not in many


@pytest.mark.parametrize(
    ("name", "scope", "below"),
    [
        ("cbor", "all", ["hello"]),
        ("cbor", "entity", []),
        ("cbor", "block", []),
        ("not-unixfs", "all", []),
        ("json", "all", []),
    ],
)
async def test_car_of_any_dag(ask, name, scope, below):
    """A root need not be UnixFS: its links are followed whatever its codec, and its entity is its block."""
    cid = SITE.cids[name]
    reply = await ask(cid, format="car", dag_scope=scope)
    assert blocks_of(reply.body) == [cid, *(SITE.cids[child] for child in below)]
    with pytest.raises(ABSENT):
        await ask(SITE.cids["absent"], format="car", dag_scope=scope)


@pytest.mark.parametrize(
    ("entity_bytes", "leaves"),
    [
        ("0:*", range(21)),
        ("0:0", [0]),
        ("999:1000", [0, 1]),
        ("5000:5999", [5]),
        ("-24:*", [20]),
        ("19000:-1", [19, 20]),
        ("0:-20000", [0]),
        ("99999:*", []),
        ("20000:9999999999", [20]),
    ],
)
async def test_car_of_a_byte_range(ask, entity_bytes, leaves):
    """entity-bytes implies the entity scope: just the leaves of that range, and the nodes above them."""
    reply = await ask(SITE.cids["clip"], format="car", entity_bytes=entity_bytes)
    found = [one for one in blocks_of(reply.body) if one.codec == RAW]
    assert found == [CID.of(CLIP[leaf * 1000 : leaf * 1000 + 1000]) for leaf in leaves]


@pytest.mark.parametrize(
    "query",
    [
        {"entity-bytes": text}
        for text in (
            "",
            "0",
            "0:",
            ":1",
            "a:b",
            "5:4",
            "-1:-5",
            "0:1:2",
            "*:*",
            "0:" + "9" * 5000,
            "+1:2",
            "٣:*",
        )
    ]
    + [{"dag-scope": "everything"}, {"car-version": "2"}, {"car-order": "bfs"}, {"car-dups": "maybe"}],
)
async def test_bad_car_parameters(ask, query):
    """Each is a 400 that names the parameter."""
    with pytest.raises(BadRequestError, match=next(iter(query)).removeprefix("car-")):
        await ask(SITE.cids["clip"], format="car", **query)


async def test_car_parameters(ask):
    """The parameters of the URL win over those in Accept, and each part of the DAG has its own ETag."""
    cid = SITE.cids["clip"]
    accept = {"Accept": "application/vnd.ipld.car;version=2;order=unk;dups=y"}
    with pytest.raises(BadRequestError, match="version"):
        await ask(cid, accept)
    assert (await ask(cid, accept, car_version="1")).status == 200
    tags = [
        (await ask(cid, method="HEAD", format="car", **query))["ETag"]
        for query in (
            {},
            {"dag-scope": "block"},
            {"dag-scope": "entity"},
            {"entity-bytes": "0:1"},
            {"entity-bytes": "0:2"},
        )
    ]
    assert len(set(tags)) == 5
    assert (await ask(cid, {"If-None-Match": tags[0]}, format="car")).status == 304
    assert (await ask(cid, {"If-None-Match": tags[1]}, format="car")).status == 200


async def test_head_of_a_car(ask):
    """HEAD of a CAR reads no DAG, and knows what is not there."""
    head = await ask(SITE.cids["broken"], method="HEAD", format="car")
    assert (head.status, head["Content-Length"]) == (200, None)
    for path in (SITE.cids["absent"], f"{ROOT}/missing"):
        with pytest.raises(NotFoundError):
            await ask(path, method="HEAD", format="car")


# what goes wrong under way


async def test_a_missing_block_in_the_middle(node):
    """The bytes before it come, then the body raises: never a short answer that looks whole."""
    for query in ({}, {"format": "car"}):
        request = GatewayRequest("GET", f"/ipfs/{SITE.cids['broken']}", query, Headers({}))
        response = await respond(node, request, settings=DEFAULTS)
        assert response.status == 200
        got = []
        with pytest.raises((RetrievalError, *ABSENT)):
            async with aclosing(response.body) as pieces:
                async for piece in pieces:
                    got.append(piece)
        assert len(got) >= 5


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-9999,10000-"}])
async def test_leaving_early_lets_go_of_the_content(tmp_path, headers):
    """A body that is being read keeps its content from garbage collection; closed half-way, it does no more."""
    fill(tmp_path)
    cid = SITE.cids["clip"]
    async with await EmbeddedNode.open(tmp_path) as node:
        request = GatewayRequest("GET", f"/ipfs/{cid}", {}, Headers(headers))
        response = await respond(node, request, settings=DEFAULTS)
        await anext(response.body)
        await anext(response.body)
        await node.gc()
        assert await node.block_has(cid)
        await response.body.aclose()
        await node.gc()
        assert not await node.block_has(cid)


async def test_a_size_that_lies(node, monkeypatch):
    """Where the content turns out shorter or longer than announced, the body raises and never overruns."""
    cid = SITE.cids["clip"]
    true_cat = node.cat
    for delta in (-1, 1):

        def cat(path, offset=0, length=0, delta=delta):
            return true_cat(path, offset, length + delta)

        monkeypatch.setattr(node, "cat", cat)
        request = GatewayRequest("GET", f"/ipfs/{cid}", {}, Headers({"Range": "bytes=100-199"}))
        response = await respond(node, request, settings=DEFAULTS)
        with pytest.raises(CorruptContentError, match="100 bytes"):
            assert len([piece async for piece in response.body]) <= 1


# any request

texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "*",
            "true",
            "1",
            "raw",
            "car",
            "json",
            "block",
            "entity",
            "0:10",
            "-5:*",
            "text/html",
            "only-if-cached",
        ]
    ),
)
paths = st.lists(
    st.one_of(
        st.sampled_from([str(cid) for cid in SITE.cids.values()]),
        st.sampled_from(
            [
                "clip.mp4",
                "sub",
                "deep",
                "site",
                "many",
                "link",
                "loop",
                "out",
                "",
                "..",
                "%2e",
                "%00",
                "%2f",
                "%",
            ]
        ),
        st.text(max_size=8),
    ),
    max_size=4,
).map("/".join)
queries = st.dictionaries(
    st.sampled_from(
        [
            "format",
            "filename",
            "download",
            "page",
            "listing",
            "dag-scope",
            "entity-bytes",
            "car-version",
            "car-dups",
            "x",
        ]
    ),
    texts,
    max_size=3,
)
header_values = st.one_of(
    texts,
    st.sampled_from(
        [
            "bytes=0-5",
            "bytes=-5,0-1",
            "bytes=99999-",
            f"bytes=0-{'9' * 5000}",
            "application/vnd.ipld.car;version=1",
            "application/vnd.ipld.raw, */*;q=0.1",
            "application/json",
            f'"{SITE.cids["clip"]}"',
        ]
    ),
)
header_sets = st.dictionaries(
    st.sampled_from(
        [
            "Range",
            "If-Range",
            "If-Match",
            "If-None-Match",
            "If-Modified-Since",
            "Accept",
            "Cache-Control",
            "Service-Worker",
        ]
    ),
    header_values,
    max_size=3,
)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(["GET", "GET", "HEAD"]), path=paths, query=queries, headers=header_sets)
async def test_no_request_is_an_internal_error(ask, method, path, query, headers):
    """Any path, query and headers: a sound response, or an error of the protocol that is nobody's 500."""
    try:
        reply = await ask(path, headers, method=method, **query)
    except IPFSStreamError as error:
        error_seen = error.status, str(error)
    else:
        assert reply.status in {200, 206, 301, 304, 416}
        assert (reply.status == 206) <= ("Range" in headers and method == "GET")
        return
    assert error_seen[0] != 500
    assert error_seen[1]
