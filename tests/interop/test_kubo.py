"""Kubo, the reference node, beside ours."""

from __future__ import annotations


def test_the_daemon_answers(kubo):
    """The fixture gives a running daemon of the version that go.mod names."""
    assert kubo.run("version", "--number") == "0.43.1"
    cid = kubo.run("add", "-Q", "--cid-version=1", data=b"hello")
    assert kubo.run_binary("cat", cid) == b"hello"
