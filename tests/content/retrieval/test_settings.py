"""What may be set."""

from __future__ import annotations

import pytest

from ipfs_stream_nb.content.retrieval.settings import RetrievalSettings
from ipfs_stream_nb.errors import BadRequestError


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@gateway.example",
        "https://hunter2@gateway.example/",
        "ftp://user:hunter2@gateway.example",
        "https://gateway.example/?key=hunter2",
        "https://:hunter2@gateway.example:99999",
    ],
)
@pytest.mark.parametrize("kind", ["gateways", "routers"])
def test_secrets_in_urls_are_refused_and_not_repeated(url, kind, monkeypatch):
    """The names of sources are shown to all users and kept beside blocks."""
    with pytest.raises(BadRequestError) as raised:
        RetrievalSettings(**{"gateways": (), "routers": (), kind: (url,)})
    assert "hunter2" not in str(raised.value)
    monkeypatch.setenv(f"IPFS_STREAM_NB_{kind.upper()}", url)
    with pytest.raises(BadRequestError) as raised:
        RetrievalSettings.from_environment()
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("url", ["https://ipfs.io", "http://127.0.0.1:8080/", "https://gateway.example/base"])
def test_base_urls_are_taken(url):
    """With a path too, which is the operator's to choose."""
    assert RetrievalSettings((url,), (url,)).gateways == (url,)


@pytest.mark.parametrize("url", ["", "ipfs.io", "file:///etc", "https://", "https://a.example:99999"])
def test_other_things_are_refused(url):
    """With the text, and an example of what would be right."""
    with pytest.raises(BadRequestError, match=r"is not the base URL.*https://ipfs\.io is one"):
        RetrievalSettings((url,), ())
