"""Which things name content."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_stream_nb.clients.naming import path_of
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Added, Entry, Pin, Stat
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.errors import BadCIDError, BadRequestError, TooLargeError

KEY = "k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8"
CID1 = CID.of(b"one")
CID0 = CID.of(b"one", 0x70, 0)


@pytest.mark.parametrize(
    "content",
    [CID1, Added(CID1, 3, 3), Stat(CID1, "file", 3), Entry("x", CID1, 3), Pin(CID1)],
)
def test_results_name_their_content(content):
    """Whatever this client gives out can be given back to it."""
    assert path_of(content) == CID1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (f"{CID1}", []),
        (f" {CID1}\n", []),
        (f"{CID1}/a b/c", ["a b", "c"]),
        (f"/ipfs/{CID1}/c", ["c"]),
        (f"ipfs://{CID1}/c", ["c"]),
        (f"ipfs:///{CID1}/c", ["c"]),
        (f"https://gateway.example/ipfs/{CID1}", []),
        (f"https://gateway.example/ipfs/{CID1}/a%20b/c?filename=x.mp4#t=3", ["a b", "c"]),
        (f"http://localhost:8888/user/ada/ipfs/{CID1}/c?token=secret", ["c"]),
        (f"https://{CID1}.ipfs.gateway.example/a%20b", ["a b"]),
        (f"HTTPS://{str(CID1).upper()}.IPFS.localhost:8080/", []),
    ],
)
def test_pasted_texts_name_content(text, names):
    """White space, URIs and URLs of gateways are brought to the CID and the names below it."""
    assert parse_path(path_of(text)) == (CID1, names)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (f"/ipns/{KEY}", f"/ipns/{KEY}"),
        (f" ipns://{KEY}/a/b.mp4/ ", f"/ipns/{KEY}/a/b.mp4"),
        ("/ipns/docs.ipfs.tech/how-to", "/ipns/docs.ipfs.tech/how-to"),
        (f"https://gateway.example/ipns/{KEY}/a%20b?filename=c", f"/ipns/{KEY}/a b"),
        (f"https://{KEY}.ipns.gateway.example/x", f"/ipns/{KEY}/x"),
        ("https://docs-ipfs--site-tech.ipns.gateway.example/", "/ipns/docs.ipfs-site.tech"),
    ],
)
def test_names_of_content_that_changes(text, path):
    """IPNS keys and domains are paths of their own, which a node resolves; a DNS label's dashes were dots."""
    assert path_of(text) == path


def test_a_version_0_cid_keeps_its_case_in_a_url():
    """Base58 has both cases, and a URL's path keeps them."""
    assert path_of(f"https://gateway.example/ipfs/{CID0}/x") == f"{CID0}/x"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/clip.mp4",
        "https://example.org/ipfs/",
        "http://[::/ipfs/x",
    ],
)
def test_a_url_without_content_is_refused(url):
    """It is told which URLs name content."""
    with pytest.raises(BadRequestError, match=r"names no content.*/ipfs/<cid>"):
        path_of(url)


def test_a_mistyped_cid_in_a_url_is_told():
    """What is wrong is the CID, not the URL."""
    with pytest.raises(BadCIDError, match="1 missing"):
        path_of(f"https://gateway.example/ipfs/{str(CID1)[:-1]}/x.mp4")


@pytest.mark.parametrize("name", ["clip.mp4", "./clip.mp4", "clip", "folder", Path("clip.mp4")])
def test_a_local_file_is_to_be_added_first(name, tmp_path, monkeypatch):
    """Whoever gives the name of a file is told that it is added first, with the call for it."""
    monkeypatch.chdir(tmp_path)
    for file in ("clip.mp4", "clip"):
        (tmp_path / file).touch()
    (tmp_path / "folder").mkdir()
    kind = "directory" if name == "folder" else "file"
    with pytest.raises(BadRequestError) as caught:
        path_of(name)
    assert str(caught.value) == (
        f"{str(name)!r} is a local {kind}, not a CID; add it first: client.add({str(name)!r})"
    )


@pytest.mark.parametrize("name", ["nowhere.mp4", "/data/clip", "baf.mp4", "x/y"])
def test_what_looks_like_a_file_may_be_meant_as_one(name):
    """A path that is not there is answered with both ways to be right."""
    with pytest.raises(
        BadCIDError, match=r"is not a CID; if a local file is meant, add it first: client\.add"
    ):
        path_of(name)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("hello", "one begins with bafy"),
        ("he\0o", "one begins with bafy"),
        (f"{str(CID1)[:-2]}/clip.mp4", "2 missing"),
        ("/ipfs/clip.mp4", "one begins with bafy"),
        ("ipns://example", "is not an IPNS name"),
        ("https://k51qzi5uqu5dl.ipns.gateway.example/", "is not an IPNS name"),
        ("/ipns/", "is not an IPNS name"),
        (f"/ipns/{CID1}", "ask for it under /ipfs/"),
        ("/ipns/example.org/../x", "may not hold"),
    ],
)
def test_other_texts_are_no_cids(text, why):
    """A CID that is mistyped is told as such, also before a file's name."""
    with pytest.raises(BadRequestError, match=why):
        path_of(text)


@pytest.mark.parametrize("content", [None, 3, b"bafy", ["bafy"]])
def test_other_things_name_no_content(content):
    """What is no CID is refused with a hint."""
    with pytest.raises(BadRequestError, match=r"client\.add"):
        path_of(content)


@given(st.text() | st.from_regex(r"https?://[a-z.\[\]%/:@?#]{0,30}(/ipfs/.{0,20})?"))
def test_any_text_is_a_path_or_a_clear_error(text):
    """No text makes anything but a path or one of our errors."""
    with suppress(BadRequestError, TooLargeError):
        parse_path(path_of(text))
