"""`ipfs://` for fsspec: pandas, pyarrow, xarray and everything else on it reads content by CID.

Registered under the entry-point group `fsspec.specs`, so nothing needs importing. Read-only: content is added
with `client.add`, which gives the CID that a path starts with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsspec.spec import AbstractFileSystem

from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.errors import BadRequestError

if TYPE_CHECKING:
    from ipfs_stream_nb.clients.sync import Client
    from ipfs_stream_nb.content.file import ContentFile


class IPFSFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Content by CID as a filesystem, through `client`, or through what `connect()` finds when it is first used."""

    protocol = "ipfs"
    root_marker = ""
    cachable = False  # connect() itself is: a kept instance would outlive a closed client

    def __init__(self, client: Client | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._client = client

    @property
    def client(self) -> Client:
        """The client that this filesystem reads through."""
        if self._client is None:
            from ipfs_stream_nb.clients.connect import connect  # noqa: PLC0415  # connecting is left to the first use

            self._client = connect()
        return self._client

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = str(path)
        for prefix in ("ipfs://", "/ipfs/"):
            text = text.removeprefix(prefix)
        return text.rstrip("/")

    def info(self, path: str, **_kwargs: Any) -> dict[str, Any]:
        """fsspec's record of a path: name, size, type, and the cid."""
        name = self._strip_protocol(path)
        stat = self.client.stat(name)
        return {
            "name": name,
            "size": stat.size,
            "type": "directory" if stat.kind == "directory" else "file",
            "cid": str(stat.cid),
            "mime_type": stat.mime_type,
        }

    def ls(self, path: str, detail: bool = True, **_kwargs: Any) -> list[Any]:
        """The entries of a directory, or the file itself."""
        name = self._strip_protocol(path)
        record = self.info(name)
        names = [name]
        if record["type"] == "directory":
            names = [f"{name}/{entry.name}" for entry in self.client.ls(name)]
        elif not detail:
            return names
        return [self.info(one) for one in names] if detail else names

    def _open(self, path: str, mode: str = "rb", **_kwargs: Any) -> ContentFile:
        if mode != "rb":
            raise BadRequestError(
                f"ipfs:// is read-only, so mode {mode!r} is not possible; add files with client.add"
            )
        return self.client.open(self._strip_protocol(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_kwargs: Any) -> bytes:
        """A file's bytes from `start` to `end`, either of which may count from the end."""
        with self._open(path) as file:
            first, last, _ = slice(start, end).indices(file.size)
            file.seek(first)
            return file.read(max(0, last - first)) or b""

    def ukey(self, path: str) -> str:
        """The CID: it changes when the content does, which for one path is never."""
        return str(self.info(path)["cid"])

    def checksum(self, path: str) -> int:
        """The CID's digest as a number."""
        cid, names = parse_path(self._strip_protocol(path))
        if names:
            cid = self.client.stat(path).cid
        return int.from_bytes(cid.digest)
