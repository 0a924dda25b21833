"""Where the Kubo daemon is: by setting, by the environment, or by the file that a running daemon writes."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from yarl import URL

from ipfs_stream_nb.errors import BadRequestError

_log = logging.getLogger("ipfs_stream_nb.kubo")

API_VARIABLE: Final = "IPFS_API"
AUTH_VARIABLE: Final = "IPFS_API_AUTH"
REPO_VARIABLE: Final = "IPFS_PATH"
MAX_API_FILE: Final = 1024
"""Bytes of `$IPFS_PATH/api`."""
_FORMS: Final = "http://127.0.0.1:5001, 127.0.0.1:5001, /ip4/127.0.0.1/tcp/5001 and /unix/run/kubo.sock are such addresses"
_HOSTS: Final = {"ip4", "ip6", "dns", "dns4", "dns6"}


@dataclass(frozen=True, slots=True)
class KuboAddress:
    """A daemon's RPC and how to be let in. The credentials are in no repr."""

    url: URL
    """Its root, without /api/v0."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    found: str = "given"
    """One line for people: why this one."""
    socket: str = ""
    """The Unix socket that is connected to in place of the URL's host, where the daemon listens on one."""

    @property
    def place(self) -> str:
        """Its URL, or its socket."""
        return self.socket or str(self.url).rstrip("/")

    @property
    def name(self) -> str:
        """What it is called in texts."""
        return f"Kubo at {self.place}"


def find_kubo(
    setting: str | None = None, auth: str | None = None, environ: Mapping[str, str] = os.environ
) -> KuboAddress | None:
    """The address that is set, or else that of $IPFS_API, $IPFS_PATH/api or ~/.ipfs/api; None where there is none.

    `auth` ("bearer:token" or "basic:user:password", as Kubo's own --api-auth) defaults to $IPFS_API_AUTH. Nobody is
    contacted. Raises BadRequestError for a setting or variable that is no address; a file that holds none is
    passed over with a warning in the log, since it may be another program's.
    """
    headers = _authorization(auth or environ.get(AUTH_VARIABLE) or "")
    if setting:
        return _address(setting, headers, "set by kubo_api")
    if environ.get(API_VARIABLE):
        return _address(environ[API_VARIABLE], headers, f"set by ${API_VARIABLE}")
    repo = Path(environ.get(REPO_VARIABLE) or Path(environ.get("HOME", "~")).expanduser() / ".ipfs")
    return _of_file(repo / "api", headers)


def _of_file(path: Path, headers: Mapping[str, str]) -> KuboAddress | None:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_API_FILE).decode("utf-8").strip()
        return _address(text, headers, f"found by {path}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _log.warning("Kubo's address is not read from %s: %s", path, error.strerror)
    except ValueError:
        _log.warning("%s is passed over: it holds no address of a Kubo RPC", path)
    return None


def _address(text: str, headers: Mapping[str, str], found: str) -> KuboAddress:
    path = text.removeprefix("/unix/").strip("/")
    if text.startswith("/unix/") and path:
        return KuboAddress(URL("http://localhost/"), headers, found, f"/{path}")
    return KuboAddress(parse_address(text), headers, found)


def parse_address(text: str) -> URL:
    """The root URL of an RPC by URL, host and port, or multiaddr of TCP. Raises BadRequestError."""
    if "@" in text or "?" in text:  # may hold a secret, so it is not shown
        raise BadRequestError(
            "an address of a Kubo RPC has no user, no password and no query; its authorisation is given as kubo_auth"
            f" or ${AUTH_VARIABLE}"
        )
    wrong = BadRequestError(f"{text!r} is no address of a Kubo RPC; {_FORMS}")
    try:
        if text.startswith("/"):
            return _of_multiaddr(text)
        url = URL(text if "://" in text else f"http://{text}")
    except ValueError:
        raise wrong from None
    if "://" not in text and url.explicit_port is None:
        raise wrong
    if url.scheme not in {"http", "https"} or not url.host:
        raise wrong
    path = url.path.rstrip("/").removesuffix("/api/v0")
    return url.with_path(f"{path}/")


def _of_multiaddr(text: str) -> URL:
    """https://multiformats.io/multiaddr/, of TCP with or without TLS. Raises ValueError."""
    parts = text.strip("/").split("/")
    if len(parts) < 4 or parts[0] not in _HOSTS or parts[2] != "tcp":
        raise ValueError(text)
    rest = parts[4:]
    if rest not in ([], ["http"], ["https"], ["tls", "http"]):
        raise ValueError(text)
    scheme = "https" if "https" in rest or "tls" in rest else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts[1], parts[1])  # noqa: S104  # read, not bound
    return URL.build(scheme=scheme, host=host, port=int(parts[3]), path="/")


def _authorization(auth: str) -> dict[str, str]:
    if not auth:
        return {}
    kind, _, secret = auth.partition(":")
    if kind == "bearer" and secret:
        return {"Authorization": f"Bearer {secret}"}
    if kind == "basic" and ":" in secret:
        return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
    raise BadRequestError("the authorisation for Kubo is given as bearer:TOKEN or as basic:USER:PASSWORD")
