"""POST /ipfs: content on its way in, in bounded memory, and POST /ipfs-stream/directories for what is here."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import ExitStack, suppress
from typing import Any, Final

from tornado import ioloop

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import BadRequestError, StoreError, TooLargeError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb.transports.watching import NOBODY, UploadWatch
from ipfs_stream_nb_server.handlers.base import IPFSHandler, access
from ipfs_stream_nb_server.handlers.streaming import StreamingHandler
from ipfs_stream_nb_server.limits import (
    MAX_DIRECTORY_BODY,
    MAX_DIRECTORY_ENTRIES,
    MAX_DIRECTORY_VALUES,
    PROGRESS_INTERVAL,
    STEPS_PER_TURN,
)
from ipfs_stream_nb_server.uploads import AddOptions, Upload, begin_upload
from ipfs_stream_nb_server.wire import json_line, json_text, wire

LINES_TYPE: Final = "application/x-ndjson"
_PARAMETERS: Final = {"pin", "name", "profile", "wrap"}


class AddingHandler(IPFSHandler):
    """What the two ways to add have in common."""

    def add_options(self) -> AddOptions:
        """The query. Raises BadRequestError."""
        unknown = self.request.query_arguments.keys() - _PARAMETERS - {"token", "_xsrf"}
        if unknown:
            raise BadRequestError(f"unknown parameter {min(unknown)!r}; {sorted(_PARAMETERS)} are known")
        profile = self.get_query_argument("profile", None)
        return AddOptions(self.flag("pin", True), self.name_argument(), profile, self.flag("wrap", False))

    async def send_added(self, added: dict[str, Any]) -> None:
        """Answer 201 with the root."""
        if added["cid"] is not None:
            self.set_header("Location", f"{self.base_url}ipfs/{added['cid']}")
        self.send_json_text(await json_text(added), 201)


class AddHandler(AddingHandler, StreamingHandler):
    """A body of any size: a file, a form of files, or a CAR. It holds one of the server's upload slots."""

    _upload: Upload | None = None
    _taking = False
    _watch: object | None = None
    _events: UploadWatch = NOBODY.upload()

    @property
    def max_body(self) -> int:  # type: ignore[override]
        """The operator's limit."""
        return self.context.limits.max_add_size

    async def prepare_body(self) -> None:
        """Rights are there; what may still be missing is room, or sense in the query."""
        options = self.add_options()
        node = await self.node()
        loop = ioloop.IOLoop.current()
        self._held = ExitStack()
        self._held.enter_context(self.context.adds.slot(self.user))
        try:
            self._upload = begin_upload(node, self.request.headers.get("Content-Type", ""), options)
        except BaseException:
            self._held.close()
            raise
        self._events = self.context.content_events.upload()
        self._upload_id = secrets.token_hex(8)
        self._wants_lines = LINES_TYPE in self.request.headers.get("Accept", "")
        self._told = self._heard = self._noted = loop.time()
        self._watch = loop.call_later(self.context.limits.stall_timeout, self._check_stall)

    async def take(self, chunk: bytes) -> None:
        """Hand the next bytes on; the connection is not read meanwhile."""
        if self._upload is None:
            return
        self._taking = True
        try:
            await self._upload.take(chunk)
            await self._tell_progress()
        finally:
            self._taking = False
            self._heard = ioloop.IOLoop.current().time()

    async def _tell_progress(self) -> None:
        now = ioloop.IOLoop.current().time()
        if now - self._noted >= PROGRESS_INTERVAL:
            self._noted = now
            self._note_progress()
        if self._wants_lines and now - self._told >= PROGRESS_INTERVAL:
            self._told = now
            if not self.in_lines:
                self.start_lines()
            self.write(json_line({"type": "progress", "bytes_processed": self._received}))
            await self.patiently(self.flush())

    def _note_progress(self) -> None:
        length = self.request.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        self._events.progress(
            {
                "upload_id": self._upload_id,
                "bytes_processed": self._received,
                "total_bytes": total,
                "percent": round(100.0 * self._received / total, 2) if total else None,
            }
        )

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Called with whatever the upload fails with."""
        if value is not None:
            self._events.failed(value)
        super().log_exception(typ, value, tb)

    def note_bug(self, error: Exception) -> None:
        """It is told as a failed upload."""

    def _check_stall(self) -> None:
        """Called now and then while the body comes: a client that sends nothing gives its slot back."""
        loop = ioloop.IOLoop.current()
        limit = self.context.limits.stall_timeout
        silent = 0.0 if self._taking else loop.time() - self._heard
        if silent < limit:
            self._watch = loop.call_later(limit - silent, self._check_stall)
            return
        self._watch = None
        self.log.info("%s: closed, its client sent nothing for %g s", self._request_summary(), limit)
        self.abort()

    @access(Action.ADD)
    async def post(self) -> None:
        """The body is whole: commit it and answer with its CID."""
        self._stop_watching()
        assert self._upload is not None  # noqa: S101  # prepare_body made it
        added = await self._upload.finish()
        self._note_progress()
        if not self._wants_lines:
            await self.send_added(added)
            return
        if not self.in_lines:
            self.start_lines()
        self.finish(await json_text({"type": "result"} | added) + b"\n")

    async def _refuse_body(self, error: Exception) -> None:
        """Nothing of the body is kept."""
        self._let_go()
        await super()._refuse_body(error)

    def on_finish(self) -> None:
        """The answer is out, or given up."""
        self._let_go()
        super().on_finish()

    def on_connection_close(self) -> None:
        """The body was cut."""
        super().on_connection_close()
        self._let_go()

    def _let_go(self) -> None:
        self._stop_watching()
        upload, self._upload = self._upload, None
        if upload is not None:
            self.context.run(self._abort_upload(upload))

    async def _abort_upload(self, upload: Upload) -> None:
        with self._held, suppress(StoreError):  # what a lost store began is swept when it is opened again
            await upload.abort()  # nothing to do where it was finished

    def _stop_watching(self) -> None:
        if self._watch is not None:
            ioloop.IOLoop.current().remove_timeout(self._watch)
            self._watch = None


class DirectoriesHandler(AddingHandler):
    """A directory of content that is here already: `{"entries": {"a/b.txt": "bafy…"}}`."""

    max_body = MAX_DIRECTORY_BODY

    @access(Action.ADD)
    async def post(self) -> None:
        """Answer with the directory's root. Who may not read an entry may not link to it either."""
        options = self.add_options()
        with self.context.adds.slot(self.user):
            entries = await asyncio.to_thread(self._entries)
            for number, cid in enumerate(set(entries.values())):
                if not number % STEPS_PER_TURN:
                    await asyncio.sleep(0)
                await self.context.policy.require(self.user, Action.READ, cid)
            node = await self.node()
            added = await node.add_directory(
                entries, profile=options.profile, pin=options.pin, name=options.name
            )
            await self.send_added(wire(added))

    def _entries(self) -> dict[str, CID]:
        """What the body names; for a thread. Raises BadRequestError, TooLargeError."""
        values = sum(self._body.count(mark) for mark in b",[{")
        if values > MAX_DIRECTORY_VALUES:
            raise TooLargeError(
                f"the body has {values} commas and brackets; at most {MAX_DIRECTORY_VALUES} do"
            )
        entries = self.json_body().get("entries")
        if not isinstance(entries, dict) or not all(isinstance(cid, str) for cid in entries.values()):
            raise BadRequestError('the body must be {"entries": {name: CID, …}}')
        if len(entries) > MAX_DIRECTORY_ENTRIES:
            raise TooLargeError(
                f"the directory has {len(entries)} entries; at most {MAX_DIRECTORY_ENTRIES} are taken in one "
                f"request. Add a larger one as a CAR"
            )
        return {name: CID.parse(cid) for name, cid in entries.items()}
