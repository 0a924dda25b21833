"""Where blocks that are not here are looked for, and with how much patience. The operator's alone to set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from yarl import URL

from ipfs_stream_nb.errors import BadRequestError

GATEWAYS_VARIABLE: Final = "IPFS_STREAM_NB_GATEWAYS"
"""Trustless gateways, separated by blanks or commas; empty for none."""
ROUTERS_VARIABLE: Final = "IPFS_STREAM_NB_ROUTERS"
"""Delegated routers, likewise."""
DEFAULT_GATEWAYS: Final = ("https://ipfs.io", "https://dweb.link", "https://trustless-gateway.link")
DEFAULT_ROUTERS: Final = ("https://delegated-ipfs.dev",)


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """Providers and limits. Times are seconds."""

    gateways: tuple[str, ...] = DEFAULT_GATEWAYS
    """Base URLs of trustless gateways (https://specs.ipfs.tech/http-gateways/trustless-gateway/)."""
    routers: tuple[str, ...] = DEFAULT_ROUTERS
    """Base URLs of delegated routers (https://specs.ipfs.tech/routing/http-routing-v1/), asked for further gateways
    where none of the above has a block."""
    connect_timeout: float = 5.0
    """Until a connection must stand."""
    answer_timeout: float = 15.0
    """Until an answer must begin: a gateway may have to look for the block itself."""
    stall_timeout: float = 10.0
    """In which the next bytes of an answer must come."""
    block_timeout: float = 60.0
    """In which the whole of a block must come, once its answer has begun: 2 MiB at 35 KiB/s."""
    hedge_after: float = 1.0
    """Without an answer for so long, a second provider is asked as well, and the first answer is taken; a provider
    whose usual answer takes longer or shorter than this moves it, between a quarter and four times."""
    max_retries: int = 3
    """Rounds through the providers that failed in passing, before a block is given up."""
    max_requests: int = 8
    """Requests to one provider at once."""
    allow_inner_providers: bool = False
    """Whether a router of the inner network may name gateways there, and ones without TLS. Such a router, as Kubo's
    is, passes on what strangers announce, who could have this server send requests to its neighbours."""

    def __post_init__(self) -> None:
        for url in (*self.gateways, *self.routers):
            check_url(url)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """The defaults, changed by GATEWAYS_VARIABLE and ROUTERS_VARIABLE. Raises BadRequestError for a bad URL."""
        gateways, routers = environ.get(GATEWAYS_VARIABLE), environ.get(ROUTERS_VARIABLE)
        return cls(
            DEFAULT_GATEWAYS if gateways is None else _urls(gateways),
            DEFAULT_ROUTERS if routers is None else _urls(routers),
        )


def _urls(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def check_url(url: str) -> None:
    """Raise BadRequestError for what is not the base URL of an HTTP service.

    Names of sources are shown to users and kept beside blocks, so that no URL may hold a secret.
    """
    if "@" in url:
        raise BadRequestError(
            "the URL of a gateway or router has a user name or password in it, which all users would see: leave it out"
        )
    try:
        parts = URL(url)
        good = parts.scheme in {"http", "https"} and bool(parts.host) and not parts.query_string
    except ValueError:
        good = False
    if not good:
        shown = url.partition("?")[0]  # there may be a secret in what follows
        raise BadRequestError(f"{shown!r} is not the base URL of a gateway or router; https://ipfs.io is one")
