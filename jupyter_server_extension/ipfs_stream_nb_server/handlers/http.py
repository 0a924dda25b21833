"""How the handlers speak HTTP: bounded bodies, answers in JSON, errors in the protocol's one shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.client import responses
from typing import Any, Final
from urllib.parse import unquote_plus

from jupyter_server.base.handlers import JupyterHandler
from tornado import ioloop, web
from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError

from ipfs_stream_nb.errors import BadRequestError, BusyError, IPFSStreamError, TooLargeError, error_json
from ipfs_stream_nb_server.limits import LINGER_BYTES, LINGER_SECONDS, MAX_JSON_BODY

SANDBOX: Final = "default-src 'none'; sandbox"
_CODES: Final = {401: "unauthorized", 403: "unauthorized", 404: "not_found", 408: "timeout", 413: "too_large"}
_NO_LIMIT: Final = 1 << 62  # Tornado's own limit would answer with a bare 400; `max_body` is checked here


class ClientStalledError(Exception):
    """The client took nothing for the whole of the stall limit."""


@web.stream_request_body
class HTTPHandler(JupyterHandler):
    """Answers and errors of all routes. Bodies arrive in pieces after `prepare`, so that it can refuse them."""

    max_body = MAX_JSON_BODY

    def initialize(self) -> None:
        """Called by Tornado for each request, before anything can be logged."""
        hide_token(self.request)
        self._body = bytearray()
        self._received = 0
        self._refused = False
        self.close_after = False
        self.in_lines = False
        self._linger: object | None = None
        connection: Any = self.request.connection
        connection.set_max_body_size(_NO_LIMIT)

    # request bodies

    def check_length(self) -> None:
        """Raise TooLargeError for a body that says itself that it is too long."""
        length = self.request.headers.get("Content-Length", "0")
        if length.isascii() and length.isdigit() and (len(length) > 19 or int(length) > self.max_body):
            shown = length if len(length) <= 19 else f"a number of {len(length)} digits of"
            raise TooLargeError(f"the body has {shown} bytes; at most {self.max_body} are taken here")

    async def data_received(self, chunk: bytes) -> None:
        """Hand on the next piece of the body; what is wrong with it is answered at once."""
        self._received += len(chunk)
        if self._refused:
            if self._received > LINGER_BYTES:
                self.abort()
            return
        try:
            self._check_received()
            await self.take(chunk)
        except (StreamClosedError, ClientStalledError):
            self.abort()
        except Exception as error:  # noqa: BLE001  # it is logged and answered; Tornado would only close
            await self._refuse_body(error)

    def _check_received(self) -> None:
        if self._received > self.max_body:
            raise TooLargeError(f"the body has over {self.max_body} bytes, the most that are taken here")

    async def take(self, chunk: bytes) -> None:
        """The next piece of a body that may come; collected unless a route does better."""
        self._body += chunk

    def json_body(self) -> dict[str, Any]:
        """The body as a JSON object, {} where there is none. Raises BadRequestError."""
        if not self._body:
            return {}
        try:
            value = json.loads(self._body)
        except (ValueError, RecursionError) as error:
            raise BadRequestError(f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise BadRequestError(f"the body must be a JSON object, not a {type(value).__name__}")
        return value

    async def refuse(self, error: Exception) -> None:
        """From `prepare`: answer with an error, in place of the method, in the way that fits the request's body."""
        headers = self.request.headers
        if "Expect" in headers:  # the client waits for leave to send its body, and does not get it
            self.close_after = True
            raise error
        if headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers:
            await self._refuse_body(error)
            return

        def fail(*_args: str) -> None:
            raise error

        # an answer before the end of the request, here an empty body's, would make Tornado close the connection
        self._replace_method(fail)

    def _replace_method(self, method: Callable[..., None]) -> None:
        setattr(self, (self.request.method or "").lower(), method)

    async def _refuse_body(self, error: Exception) -> None:
        """Answer with an error while the body is still on its way, and read on for a little while.

        Closing at once would reset the connection under a client that is busy sending, and it would never see
        the answer (RFC 9112, section 9.6). What is read is thrown away, up to LINGER_BYTES and LINGER_SECONDS.
        """
        self._refused = True
        self._received = 0
        self._replace_method(self._end_refused)
        self.log_exception(type(error), error, error.__traceback__)
        if self._headers_written and not self.in_lines:
            self.abort()
            return
        if self._headers_written:
            self.write(self.error_answer(_status(error), error) + b"\n")
        else:
            self.clear()
            body = self.error_answer(_status(error), error)
            self.set_header("Content-Length", len(body))
            self.write(body)
        self._linger = ioloop.IOLoop.current().call_later(LINGER_SECONDS, self.abort)
        try:
            await self.flush()
        except StreamClosedError:
            self.abort()

    def _end_refused(self, *_args: str) -> None:
        """In place of the method, when the body of a refused request has ended after all."""
        self.finish()

    # answers

    def set_default_headers(self) -> None:
        """Nothing of these routes may run scripts, be sniffed or be embedded by another site."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", SANDBOX)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")

    def compute_etag(self) -> None:
        """ETags are the gateway's matter; Tornado would hash each answer."""

    def send_json(self, value: object, status: int = 200) -> None:
        """Finish with a JSON answer, which no cache keeps."""
        self.send_json_text(json.dumps(value).encode(), status)

    def send_json_text(self, text: bytes, status: int = 200) -> None:
        """As `send_json`, with JSON that is made."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.finish(text)

    def start_lines(self) -> None:
        """Begin an answer of JSON lines; an error after the first of them is a line too."""
        self.in_lines = True
        self.set_header("Content-Type", "application/x-ndjson")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Accel-Buffering", "no")

    def abort(self) -> None:
        """Break the connection, so that a client cannot take a cut answer for a whole one."""
        connection: Any = self.request.connection
        if connection.stream is not None:
            connection.stream.close()
        if not self._finished:
            self.finish()

    def on_finish(self) -> None:
        """Called by Tornado when the answer is out, or given up."""
        if self._linger is not None:
            ioloop.IOLoop.current().remove_timeout(self._linger)
            self._linger = None

    # errors

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """What the client is told needs no traceback: the request's own log line has the status."""
        if isinstance(value, (IPFSStreamError, web.HTTPError)):
            self.log.debug("%s: %s", self._request_summary(), value)
        else:
            super().log_exception(typ, value, tb)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Answer with the error's own status, or break the connection where the answer has begun."""
        error = (kwargs.get("exc_info") or (None, None))[1]
        if self._headers_written and self.in_lines and not self._finished:
            self.finish(self.error_answer(status_code, error) + b"\n")
            return
        if self._headers_written:
            self.abort()
            return
        super().send_error(error.status if isinstance(error, IPFSStreamError) else status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """The protocol's error shape, also for what Tornado and Jupyter raise."""
        self.finish(self.error_answer(status_code, (kwargs.get("exc_info") or (None, None))[1]))

    def error_answer(self, status: int, error: BaseException | None) -> bytes:
        """The error's JSON, with the headers set for it. An internal error's own text stays in the log."""
        if isinstance(error, IPFSStreamError) and error.code != "internal":
            body = error.to_json()
        elif status < 500:
            text = isinstance(error, web.HTTPError) and error.get_message()
            body = error_json(_CODES.get(status, "bad_request"), text or responses[status])
        else:
            body = error_json("internal", "an internal error; the server's log has the details")
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        if self.close_after:
            self.set_header("Connection", "close")
        if isinstance(error, BusyError):
            self.set_header("Retry-After", "1")
        return json.dumps(body).encode()


def _status(error: BaseException) -> int:
    if isinstance(error, IPFSStreamError):
        return error.status
    return error.status_code if isinstance(error, web.HTTPError) else 500


def hide_token(request: HTTPServerRequest) -> None:
    """Take the token out of the URL that logs and error reports show, however its name is spelt."""
    if "token" not in request.query_arguments:
        return
    path, _, query = (request.uri or "").partition("?")
    parts = []
    for part in query.split("&"):
        name, _, _ = part.partition("=")
        parts.append("token=[secret]" if unquote_plus(name) == "token" else part)
    request.uri = f"{path}?{'&'.join(parts)}"
