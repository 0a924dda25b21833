"""Capability tokens: signed, minutes long, good for one action on one CID, or for adding or subscribing.

They stand in a URL in place of the server's own token, for a page that cannot send a cookie or a header. They
are JSON Web Tokens (RFC 7519) with HMAC-SHA-256 and nothing else: the algorithm is pinned (RFC 8725, section 3.1).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import jwt

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import BadCIDError, BadRequestError, UnauthorizedError
from ipfs_stream_nb.security.access import Action

ALGORITHM: Final = "HS256"
ISSUER: Final = "ipfs_stream_nb"
AUDIENCE: Final = "ipfs_stream_nb/capability"
DEFAULT_TTL: Final = 600.0
"""Seconds: long enough to open a player and for it to come back with a seek."""
MAX_TTL: Final = 3600.0
"""Seconds."""
MAX_TOKEN: Final = 2048
"""Characters. Longer texts are refused before any of it is decoded; ours have some 400."""
MIN_SECRET: Final = 32
"""Bytes: the output size of the hash (RFC 7518, section 3.2)."""
MAX_USER: Final = 512
"""Characters of a username."""
_CLAIMS: Final = ("act", "aud", "cid", "exp", "iss", "sub")


@dataclass(frozen=True, slots=True)
class Capability:
    """What a token lets its bearer do, in whose name."""

    user: str
    action: Action
    cid: CID | None
    """None for an action that names no content: adding, subscribing."""
    expires: float
    """Seconds since the epoch."""
    types: frozenset[str] | None = None
    """The notification types that may be seen with it, if its user may see them; None: no such limit."""

    def covers(self, action: Action, cid: CID | None) -> bool:
        """Whether it is for this action on this content; CIDv0 and CIDv1 of the same block are the same."""
        same = cid is self.cid if cid is None or self.cid is None else cid.v1() == self.cid.v1()
        return action is self.action and same


def looks_like_token(text: str) -> bool:
    """Whether this may be one of ours, to tell it from Jupyter's tokens without decoding anything."""
    return text.startswith("eyJ") and text.count(".") == 2


class TokenSigner:
    """Makes and checks capability tokens under one secret.

    The secret never leaves the server process; a restart with a new one ends all tokens.
    """

    def __init__(self, secret: bytes, *, default_ttl: float = DEFAULT_TTL, max_ttl: float = MAX_TTL) -> None:
        if len(secret) < MIN_SECRET:
            raise ValueError(f"the secret has {len(secret)} bytes; {MIN_SECRET} random ones are needed")
        if not 0 < default_ttl <= max_ttl:
            raise ValueError(f"the default time to live {default_ttl} s must lie between 0 and {max_ttl} s")
        self._secret = secret
        self.default_ttl = default_ttl
        self.max_ttl = max_ttl

    def issue(
        self,
        user: str,
        action: Action,
        cid: CID | None,
        ttl: float | None = None,
        types: frozenset[str] | None = None,
    ) -> tuple[str, Capability]:
        """A token and what it grants; `ttl` in seconds, `types` for subscribing only.

        Raises BadRequestError for a ttl or username out of range, and for types with another action.
        """
        if types is not None and action is not Action.SUBSCRIBE:
            raise BadRequestError(f"a token to {action} names no notification types")
        ttl = self.default_ttl if ttl is None else ttl
        if not 1 <= ttl <= self.max_ttl:  # also refuses NaN
            raise BadRequestError(f"ttl is {ttl} s; it must be between 1 and {self.max_ttl:g} s")
        if not 0 < len(user) <= MAX_USER:
            raise BadRequestError(f"a username has 1 to {MAX_USER} characters, this one has {len(user)}")
        expires = int(time.time() + ttl)
        claims: dict[str, object] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user,
            "act": action.value,
            "cid": "" if cid is None else str(cid),
            "exp": expires,
        }
        if types is not None:
            claims["types"] = sorted(types)
        token = jwt.encode(claims, self._secret, algorithm=ALGORITHM)
        if len(token) > MAX_TOKEN:  # a name beyond ASCII takes up to 16 characters for one
            raise BadRequestError(
                f"the username is too long: the token has {len(token)} characters, {MAX_TOKEN} at most"
            )
        return token, Capability(user, action, cid, float(expires), types)

    def read(self, token: str) -> Capability:
        """What a token grants. Raises UnauthorizedError, which says whether it is expired or not one of ours."""
        if len(token) > MAX_TOKEN:
            raise UnauthorizedError(f"a capability token has at most {MAX_TOKEN} characters")
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={"require": list(_CLAIMS), "strict_aud": True},
            )
            cid = CID.parse(claims["cid"]) if claims["cid"] else None
            types = _types(claims.get("types"))
            return Capability(claims["sub"], Action(claims["act"]), cid, float(claims["exp"]), types)
        except jwt.ExpiredSignatureError:
            raise UnauthorizedError("this capability token has expired; ask for a new one") from None
        except (jwt.InvalidTokenError, ValueError, TypeError, BadCIDError):
            raise UnauthorizedError("this is not a valid capability token of this server") from None

    def check(self, token: str, action: Action, cid: CID | None) -> Capability:
        """Read a token and raise UnauthorizedError unless it covers this action on this CID."""
        capability = self.read(token)
        if not capability.covers(action, cid):
            what = f"{action} {cid}" if cid is not None else str(action)
            raise UnauthorizedError(f"this capability token is for another action or CID, not for: {what}")
        return capability


def _types(claim: object) -> frozenset[str] | None:
    """The claim of that name, which is in few tokens. Raises ValueError."""
    if claim is None:
        return None
    if not isinstance(claim, list) or not all(isinstance(name, str) for name in claim):
        raise ValueError("types is no list of texts")
    return frozenset(claim)
