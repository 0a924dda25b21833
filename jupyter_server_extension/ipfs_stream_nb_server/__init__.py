"""The Jupyter server extension: IPFS content over HTTP, behind Jupyter's own authentication."""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Called by Jupyter to find the extension."""
    from ipfs_stream_nb_server.app import IPFSStreamExtension  # noqa: PLC0415  # only a server needs it

    return [{"module": "ipfs_stream_nb_server", "app": IPFSStreamExtension}]
