"""The uploader widget: files and folders from the browser into IPFS, past the kernel."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import traitlets as t

from ipfs_stream_nb.clients.results import hinted
from ipfs_stream_nb.content.importer import get_profile
from ipfs_stream_nb.display import a_kind
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.widgets.modules import join_modules, themed
from ipfs_stream_nb.widgets.strict import StrictWidget
from ipfs_stream_nb.widgets.uploads import Upload, Uploads, read_upload

if TYPE_CHECKING:
    from ipfs_stream_nb.clients.content import AsyncClient
    from ipfs_stream_nb.clients.sync import Client

Callback = TypeVar("Callback", bound=Callable[[Upload], object])

_STATIC: Final = Path(__file__).parent / "static"
_ACCEPT: Final = re.compile(r"\.[\w.+-]+|[\w.+-]+/(\*|[\w.+-]+)")
"""One part of `accept`: a file extension, or a MIME type that may end in `/*`."""
_GOING_ON: Final = frozenset(
    {"waiting", "uploading", "reconnecting", "paused", "finishing", "error", "interrupted"}
)
"""States of what needs the page that it is in."""

_log = logging.getLogger(__name__)


class Uploader(StrictWidget):
    """A place in the notebook to drop files and folders, or to choose them; their bytes go to the server directly.

    What was uploaded:
        cids        the finished ones, each with name, cid, size and files; cids["clip.mp4"] finds one by name
        uploads     all of them, with their state and how far they are; observable
    Can be set, and observable:
        multiple    several files, and folders (True), or one file at a time
        pin         keep what is uploaded (True); what is not pinned goes with the next garbage collection
        profile     how the CID is made, as in client.add; None is the default
        accept      what is taken, as in HTML: "image/*,.mp4"; "" is everything

    A folder becomes one directory, without its hidden files. An upload goes on after a lost connection; after a
    reload of the page it goes on when the same file is chosen again.
    """

    _esm = join_modules(_STATIC / "uploader.js")
    _css = themed(_STATIC / "uploader.css")

    multiple = t.Bool(True).tag(sync=True)
    pin = t.Bool(True).tag(sync=True)
    profile = t.Unicode(None, allow_none=True).tag(sync=True)
    accept = t.Unicode("").tag(sync=True)

    uploads = t.Instance(Uploads, args=(), read_only=True)
    results = t.List(t.Dict(), read_only=True, help="what a page shows of the finished ones").tag(sync=True)

    base_url = t.Unicode("/", read_only=True).tag(sync=True)
    same_origin = t.Bool(False, read_only=True).tag(sync=True)

    @hinted
    def __init__(
        self,
        client: Client,
        *,
        multiple: bool = True,
        pin: bool = True,
        profile: str | None = None,
        accept: str = "",
    ) -> None:
        """Raises TraitError for a value that is not taken."""
        server = client.server
        self._client = client
        self._callbacks: list[Callable[[Upload], object]] = []
        self._by_id: dict[str, Upload] = {}
        self._pages: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self.set_trait("base_url", server.base_url)
        self.set_trait("same_origin", server.same_origin)
        super().__init__(multiple=multiple, pin=pin, profile=profile, accept=accept)
        self.on_msg(self._receive)

    @property
    def cids(self) -> Uploads:
        """What is finished, in the order in which it was begun."""
        return Uploads(one for one in self.uploads if one.cid is not None)

    def on_complete(self, callback: Callback, *, remove: bool = False) -> Callback:
        """Have `callback(upload)` called in the kernel for each finished file or folder; usable as a decorator.

        What it raises is shown beside the upload, and logged. `remove=True` takes the callback away. Raises
        BadRequestError for what cannot be called, or would have to be awaited.
        """
        if not callable(callback):
            raise BadRequestError(
                f"on_complete needs a function that takes an upload, not {a_kind(callback)}"
            )
        if inspect.iscoroutinefunction(callback):
            raise BadRequestError("on_complete calls functions and awaits none; start a task in one instead")
        if remove:
            if callback not in self._callbacks:
                raise BadRequestError("on_complete(…, remove=True): this callback is not there")
            self._callbacks.remove(callback)
        elif callback not in self._callbacks:
            self._callbacks.append(callback)
        return callback

    def __repr__(self) -> str:
        facts = f"{len(self.cids)} of {len(self.uploads)} done" if self.uploads else "nothing uploaded yet"
        return f"Uploader({facts}{', closed' * self._closed})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The widget, and a table of what was uploaded for where no widget runs: GitHub, nbval, a closed notebook."""
        bundle: tuple[dict[str, Any], dict[str, Any]] | None = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            bundle[0]["text/html"] = self.uploads._repr_html_()
        return bundle

    # ---- what comes from the browser

    def _receive(self, _widget: Uploader, message: dict[str, Any], _buffers: list[memoryview]) -> None:
        match message:
            case {"event": "ready", "page": str(page), "known": list(known)}:
                self._interrupt(page, known)
            case {"event": "items", "page": str(page), "number": int(number), "items": list(items)}:
                gone = message.get("gone")
                self._take(page, items, gone if isinstance(gone, list) else [])
                self.send({"taken": number})
            case {"event": "token", "request": str(request)}:
                try:
                    answer = self._token()
                except (IPFSStreamError, OSError) as error:
                    answer = {"error": str(error)}
                self.send({"request": request, **answer})

    def _interrupt(self, page: str, known: list[Any]) -> None:
        """A page begins. Where it is a reload, what the one before was at work on has stopped: what the browser still
        knows can be gone on with, the rest is lost. A second page that is still there says otherwise with its next report.
        """
        for one in list(self._by_id.values()):
            if one.state not in _GOING_ON or self._pages[one.id] == page:
                continue
            if one.id in known:
                self._by_id[one.id] = one.stopped()
            else:
                del self._by_id[one.id], self._pages[one.id]
        self._show()

    def _take(self, page: str, items: list[Any], gone: list[Any]) -> None:
        """A page's report: what changed, and what was taken out of the list."""
        finished = []
        for item in items:
            upload = read_upload(item)
            if upload is None:
                continue
            before = self._by_id.get(upload.id)
            if before is not None and before.cid is not None:
                continue  # what is done stays as it is: a report that comes twice calls nobody twice
            self._by_id[upload.id] = upload
            self._pages[upload.id] = page
            if upload.cid is not None:
                finished.append(upload)
        for key in gone:
            one = self._by_id.get(key) if isinstance(key, str) else None
            if one is not None and one.cid is None:
                del self._by_id[one.id], self._pages[one.id]
        self._show()
        for upload in finished:
            self._call(upload)
        if finished:
            self._show()

    def _call(self, upload: Upload) -> None:
        for callback in list(self._callbacks):
            try:
                callback(upload)
            except Exception as error:  # noqa: BLE001  # a user's own, which is shown
                name = getattr(callback, "__name__", "the callback")
                _log.error("on_complete: %s failed for %s", name, upload.name, exc_info=error)
                self._notes[upload.id] = f"on_complete: {name} raised {type(error).__name__}: {error}"

    def _show(self) -> None:
        uploads = Uploads(self._by_id.values())
        self.set_trait("uploads", uploads)
        shown = [one.to_json() | {"note": self._notes.get(one.id, "")} for one in self.cids]
        self.set_trait("results", shown)

    def _token(self) -> dict[str, Any]:
        """A capability token to add. It goes to the page that asked and nowhere else: traits are saved."""
        return self._client._run(_grant) | {"url": self._client.server.url}  # noqa: SLF001  # ours

    # ---- checks

    @t.validate("profile")
    def _check_profile(self, proposal: Any) -> str | None:
        name: str | None = proposal.value
        try:
            return None if name is None else get_profile(name).name
        except BadRequestError as error:
            raise t.TraitError(f"profile={name!r}: {error}") from None

    @t.validate("accept")
    def _check_accept(self, proposal: Any) -> str:
        parts = [part.strip() for part in proposal.value.split(",") if part.strip()]
        for part in parts:
            if not _ACCEPT.fullmatch(part):
                raise t.TraitError(
                    f'accept={proposal.value!r}: {part!r} is neither an extension such as ".mp4" nor a type such as '
                    f'"image/*" or "text/csv"; several are separated by commas'
                )
        return ",".join(parts)


async def _grant(client: AsyncClient) -> dict[str, Any]:
    request = {"action": Action.ADD.value}
    return await client._http.json("POST", "ipfs-stream/tokens", json_body=request)  # noqa: SLF001  # ours
