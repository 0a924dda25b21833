"""The base of every handler: who may do this.

A handler method says with `@access(Action.…)` what it does. `prepare` then asks, before any of the body is
read: Jupyter's identity provider (or a capability token) who it is, Jupyter's authorizer whether that user may
use these routes, and the access policy about the action and the CID. A method that says nothing is refused.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from inspect import isawaitable
from typing import Any, Final

from jupyter_server.auth import AllowAllAuthorizer, Authorizer
from jupyter_server.auth.identity import IdentityProvider, User
from jupyter_server.auth.utils import HTTP_METHOD_TO_AUTH_ACTION
from tornado import web

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Node
from ipfs_stream_nb.content.observing import acting_user
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, StoreError, UnauthorizedError
from ipfs_stream_nb.notifications.emitting import emit_error
from ipfs_stream_nb.notifications.rights import Principal
from ipfs_stream_nb.security.access import AccessPolicy, Action
from ipfs_stream_nb.security.tokens import Capability, looks_like_token
from ipfs_stream_nb_server.context import ServerContext
from ipfs_stream_nb_server.handlers.http import HTTPHandler
from ipfs_stream_nb_server.limits import BODY_TIMEOUT, MAX_PIN_NAME

RESOURCE: Final = "ipfs"
"""What Jupyter's authorizer is asked about, with `read` or `write` by the HTTP method."""
CREDENTIALS: Final = (
    "authentication is required: Jupyter's cookie, an `Authorization: token …` header or ?token=…"
)
CROSS_ORIGIN: Final = (
    "cross-origin request refused: send an `Authorization: token …` header, or have the operator set "
    "ServerApp.allow_origin"
)
ANONYMOUS: Final = "anonymous"
"""The user of a server that does not know its users: Jupyter invents another name for each request without a cookie."""
_INVENTING: Final = ("get_user", "_get_user", "generate_anonymous_user")
"""What an identity provider that knows its users does in a way of its own."""
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Method = Callable[..., Any]


def access(action: Action) -> Callable[[Method], Method]:
    """Say what a handler method does; without it `prepare` refuses every request to the method.

    `web.authenticated` asks nothing new: Jupyter looks for it in the route table when it starts.
    """

    def mark(method: Method) -> Method:
        checked: Method = web.authenticated(method)
        checked.ipfs_action = action  # type: ignore[attr-defined]
        return checked

    return mark


def allows_all(policy: AccessPolicy, authorizer: Authorizer) -> bool:
    """Whether users are refused nothing, as far as an operator can say."""
    return type(policy) is AccessPolicy and type(authorizer) is AllowAllAuthorizer


class IPFSHandler(HTTPHandler):
    """Jupyter's authentication and authorizer, capability tokens and the access policy, for every route."""

    names_cid = False
    """Whether the route's first group starts with the CID that the request is about."""
    verb: str | None = None
    """What Jupyter's authorizer is asked about; None: what the HTTP method amounts to."""
    asks_later = False
    """Whether the policy is asked about what comes over the connection, and not about the request."""

    def initialize(self, context: ServerContext) -> None:  # type: ignore[override]
        """Called by Tornado with the route's keyword arguments."""
        self.context = context
        self.capability: Capability | None = None
        self._node: Node | None = None
        super().initialize()

    @property
    def log(self) -> logging.Logger:
        """The extension's log."""
        return self.context.log

    @property
    def user(self) -> str:
        """The name of whoever asks: ANONYMOUS where the server knows a single person."""
        return self.owner or ANONYMOUS

    @property
    def owner(self) -> str | None:
        """Whose the events are that come of this request; None where all users are one person: Jupyter itself knows a
        single one, and invents a name for each of that person's clients."""
        provider = type(self.identity_provider)
        if all(getattr(provider, name) is getattr(IdentityProvider, name) for name in _INVENTING):
            return None
        return str(self.current_user.username)

    @property
    def seconds_left(self) -> float | None:
        """For how long whoever asks may go on listening: until the token ends; None: for ever."""
        return None if self.capability is None else max(0.0, self.capability.expires - time.time())

    async def principal(self) -> Principal:
        """Who asks, and which notifications that user may see and send."""
        policy, types = self.context.policy, self.capability.types if self.capability else None
        admin = await policy.role(self.user) == "admin"
        webrtc = (await policy.permissions(self.user)).get("webrtc") is True
        return Principal(self.owner, admin=admin, webrtc=webrtc, types=types)

    @property
    def token_authenticated(self) -> bool:
        """A capability token is sent on purpose, as Jupyter's token is: no cross-site request can hold one."""
        return self.capability is not None or super().token_authenticated

    def set_cors_headers(self) -> None:
        """Jupyter's, without the empty header that it gives to whoever sends no Origin."""
        super().set_cors_headers()
        if not self._headers.get("Access-Control-Allow-Origin", "*"):
            self.clear_header("Access-Control-Allow-Origin")

    def check_xsrf_cookie(self) -> None:
        """Jupyter's, with a reason where it answers another site's request as if the route did not exist."""
        try:
            super().check_xsrf_cookie()
        except web.HTTPError as error:
            if error.status_code != HTTPStatus.NOT_FOUND:
                raise
            raise UnauthorizedError(CROSS_ORIGIN) from None

    @property
    def cid(self) -> CID:
        """The CID that the route names. Raises BadCIDError."""
        return CID.parse(self.path_args[0].partition("/")[0])

    async def node(self) -> Node:
        """The server's node. Raises StoreError where it cannot be had."""
        self._node = self.context.nodes.node or await self.context.nodes.get()
        return self._node

    def note_failure(self, error: BaseException | None) -> None:
        """Have the node looked at where it failed because of its store."""
        if isinstance(error, StoreError) and self._node is not None:
            self.context.nodes.suspect(self._node)

    def note_bug(self, error: Exception) -> None:
        """Tell of an error that is nobody's but ours; its text stays in the log."""
        what = f"{self.request.method} {self.request.path}"
        emit_error(self.context.emit, what, error, owner=acting_user.get())

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Called with whatever a request fails with."""
        self.note_failure(value)
        if isinstance(value, Exception) and not isinstance(value, (IPFSStreamError, web.HTTPError)):
            self.note_bug(value)
        super().log_exception(typ, value, tb)

    async def prepare(self, **_kwargs: object) -> None:
        """Check all rights, then the size of the body that is to come."""
        self._transforms = []  # compression would change lengths and ranges
        action: Action | None = getattr(
            getattr(self, (self.request.method or "").lower()), "ipfs_action", None
        )
        try:
            await self._authenticate(action)
            await self._authorize(action)
            acting_user.set(self.owner)
            self.check_length()
            await self.prepare_body()
        except Exception as error:  # noqa: BLE001  # logged and answered there
            await self.refuse(error)

    async def prepare_body(self) -> None:
        """Called when all rights are there, before the body arrives."""
        connection: Any = self.request.connection
        connection.set_body_timeout(BODY_TIMEOUT)

    async def _authenticate(self, action: Action | None) -> None:
        refusal = CREDENTIALS
        if action is not None and "token" in self.request.query_arguments:
            token = self.get_query_argument("token")
            if looks_like_token(token):
                try:
                    self.capability = self.context.signer.check(token, action, self._cid_or_none())
                except UnauthorizedError as error:
                    refusal = str(error)
        if self.capability is not None:
            self._enter_with(self.capability)
            return
        try:
            await super().prepare(_redirect_to_login=False)
        except web.HTTPError as error:
            if error.status_code == 403 and not error.log_message:
                raise UnauthorizedError(refusal) from None
            raise
        if self.current_user is None:  # Jupyter leaves this to the routes unless told otherwise
            raise UnauthorizedError(refusal)

    def _enter_with(self, capability: Capability) -> None:
        """Be the user of a capability token, for this request alone: no login cookie is set."""
        if not self.check_host():
            raise UnauthorizedError("requests with this Host header are not allowed")
        self.current_user = self._jupyter_current_user = User(capability.user)
        self.set_cors_headers()

    def _cid_or_none(self) -> CID | None:
        try:
            return self.cid if self.names_cid else None
        except BadRequestError:
            return None

    async def _authorize(self, action: Action | None) -> None:
        if action is None:
            known = [m for m in self.SUPPORTED_METHODS if hasattr(getattr(self, m.lower()), "ipfs_action")]
            raise web.HTTPError(405, "this path takes %s", ", ".join(known))
        verb = self.verb or HTTP_METHOD_TO_AUTH_ACTION[self.request.method or "GET"]
        allowed = self.authorizer.is_authorized(self, self.current_user, verb, RESOURCE)
        if isawaitable(allowed):
            allowed = await allowed
        if not allowed:
            raise UnauthorizedError(f"this server's authorizer does not let you {verb} {RESOURCE}")
        if not self.asks_later:
            await self.context.policy.require(self.user, action, await self.subject())

    async def subject(self) -> CID | None:
        """The root that the policy is asked about; None for what names no content."""
        return self.cid if self.names_cid else None

    # what several routes read from the query

    def name_argument(self) -> str:
        """The query's `name`, exactly as it was sent; "" where there is none. Raises BadRequestError."""
        # Tornado's own getter would put a space for each control character
        values = self.request.query_arguments.get("name", [b""])
        name = self.decode_argument(values[-1], "name")
        if len(name) > MAX_PIN_NAME:
            raise BadRequestError(f"the name has {len(name)} characters; at most {MAX_PIN_NAME} are taken")
        if _CONTROLS.search(name):
            raise BadRequestError(f"the name {name!r} has control characters; leave them out")
        return name

    def flag(self, name: str, default: bool) -> bool:
        """A query parameter that is 0 or 1. Raises BadRequestError."""
        value = self.get_query_argument(name, "1" if default else "0")
        if value not in ("0", "1"):
            raise BadRequestError(f"{name}={value!r}: it must be 0 or 1")
        return value == "1"
