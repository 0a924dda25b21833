"""What an uploader has: each upload as it stands, and the list of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self, get_args

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.display import size_text, table_html
from ipfs_stream_nb.errors import BadCIDError

State = Literal["waiting", "uploading", "reconnecting", "paused", "finishing", "done", "error", "interrupted"]
"""`interrupted`: its page was closed or reloaded, and the file was not chosen again yet."""
_STATES: Final = frozenset(get_args(State))
_KINDS: Final = frozenset({"file", "folder"})
MAX_TEXT: Final = 4096
"""Characters of a name or an error that are taken from a page."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One file or folder. It names content once it has a CID: `client.play(upload)`; `str()` is the CID."""

    id: str
    name: str
    kind: str
    """file or folder."""
    size: int
    """Bytes, all files together."""
    sent: int
    """Bytes that the server has."""
    state: str
    """waiting, uploading, reconnecting, paused, finishing, done, error or interrupted."""
    cid: CID | None = None
    """None until it is done; of a folder, the directory's."""
    files: int = 1
    error: str = ""

    @property
    def percent(self) -> float:
        """0 to 100."""
        if self.state == "done":
            return 100.0
        return 100.0 * self.sent / self.size if self.size else 0.0

    def stopped(self) -> Self:
        """The same, its page gone."""
        return replace(self, state="interrupted")

    def to_json(self) -> dict[str, Any]:
        """What a page shows of it."""
        return {
            "id": self.id,
            "name": self.name,
            "kind": self.kind,
            "size": self.size,
            "files": self.files,
            "cid": str(self.cid),
        }

    def __str__(self) -> str:
        return self.name if self.cid is None else str(self.cid)

    def __repr__(self) -> str:
        if self.cid is not None:
            return f"Upload({self.name!r}, {size_text(self.size)}, {self.cid})"
        return f"Upload({self.name!r}, {size_text(self.size)}, {self.state})"

    def _repr_html_(self) -> str:
        return Uploads([self])._repr_html_()


class Uploads(list[Upload]):
    """Uploads in the order in which they were begun; `uploads["name"]` finds the last of that name too."""

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        for upload in reversed(self):
            if upload.name == key:
                return upload
        raise KeyError(key)

    def __repr__(self) -> str:
        return "\n".join(["uploads:", *(f"  {one!r}" for one in self)]) if self else "no uploads"

    def _repr_html_(self) -> str:
        if not self:
            return "<p>Nothing uploaded yet.</p>"
        rows = [(one.name, one.files, size_text(one.size), one.cid or _in_words(one)) for one in self]
        return table_html(("name", "files", "size", "CID"), rows, "uploads")


def _in_words(upload: Upload) -> str:
    return upload.error or f"{upload.state}, {upload.percent:.0f} %"


def read_upload(item: object) -> Upload | None:
    """One of a page's report; None for what is none."""
    match item:
        case {
            "id": str(key),
            "name": str(name),
            "kind": str(kind),
            "size": int(size),
            "sent": int(sent),
            "files": int(files),
            "state": str(state),
        }:
            text = item.get("cid")  # type: ignore[attr-defined]  # a mapping, by the pattern
            error = item.get("error")  # type: ignore[attr-defined]
        case _:
            return None
    if kind not in _KINDS or state not in _STATES or not 0 <= sent <= size or files < 1:
        return None
    cid = None
    if state == "done":
        try:
            cid = CID.parse(text if isinstance(text, str) else "")
        except BadCIDError:
            return None
    shown = error[:MAX_TEXT] if isinstance(error, str) else ""
    return Upload(key, name[:MAX_TEXT], kind, size, sent, state, cid, files, shown)
