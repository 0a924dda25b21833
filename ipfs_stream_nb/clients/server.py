"""Which server a client talks to: given by URL, or found as the Jupyter server that started this kernel.

A Jupyter server writes `jpserver-<pid>.json` into its runtime directory, readable by its user alone, and gives
its kernels its process id in JPY_PARENT_PID. Under JupyterHub the address and a token stand in the environment.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from ipfs_stream_nb.errors import BadRequestError

_ANY_ADDRESS = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # read, not bound
_APPS = ("/lab", "/tree", "/doc", "/notebooks")


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server and how to speak to it. The token is in no repr."""

    url: str
    """Absolute, with a slash at the end."""
    base_url: str
    """The path part of `url`, from slash to slash."""
    token: str | None = field(default=None, repr=False)
    same_origin: bool = False
    """Whether the notebook in the browser comes from this server, so that its cookie is good for media URLs."""
    found: str = "given by URL"
    """One line for people: why this server."""
    embedded: bool = False
    """Whether this process runs it."""

    @classmethod
    def at(
        cls,
        url: str,
        token: str | None = None,
        *,
        same_origin: bool = False,
        found: str = "given by URL",
        embedded: bool = False,
    ) -> Self:
        """Read a server's URL, also one pasted from Jupyter's log (`…/lab?token=…`).

        Raises BadRequestError for what is not an http or https URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BadRequestError(f"{url!r} is not a server's URL; one looks like http://localhost:8888/")
        if parts.username or parts.password:
            raise BadRequestError("give the token as connect(url, token=…), not as a user name in the URL")
        path = parts.path.rstrip("/")
        given = parse_qs(parts.query).get("token", [None])[0]
        if given is not None:
            path = next((path.removesuffix(app) for app in _APPS if path.endswith(app)), path)
        host = _ANY_ADDRESS.get(parts.hostname, parts.hostname)
        host = f"[{host}]" if ":" in host else host
        port = f":{parts.port}" if parts.port else ""
        return cls(
            url=f"{parts.scheme}://{host}{port}{path}/",
            base_url=f"{path}/",
            token=token or given,
            same_origin=same_origin,
            found=found,
            embedded=embedded,
        )

    @property
    def on_this_machine(self) -> bool:
        """Whether the address is a loopback one."""
        host = urlsplit(self.url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def servers_of_kernel(environ: Mapping[str, str] = os.environ) -> Iterator[ServerInfo]:
    """The servers that may have started this process, the surest first. None is asked whether it answers."""
    if "JUPYTERHUB_SERVICE_PREFIX" in environ and "JUPYTERHUB_SERVICE_URL" in environ:
        service = urlsplit(environ["JUPYTERHUB_SERVICE_URL"])
        yield ServerInfo.at(
            f"{service.scheme}://{service.netloc or '127.0.0.1'}{environ['JUPYTERHUB_SERVICE_PREFIX']}",
            environ.get("JUPYTERHUB_API_TOKEN"),
            same_origin=True,
            found="this JupyterHub user's server",
        )
    record = _running_server(environ.get("JPY_PARENT_PID", ""))
    if record is not None and not record.get("sock"):
        yield ServerInfo.at(
            str(record["url"]),
            record.get("token") or None,
            same_origin=True,
            found="the Jupyter server of this kernel",
        )


def _running_server(pid: str) -> dict[str, Any] | None:
    """What the running Jupyter server with this process id wrote about itself."""
    if not pid.isdecimal():
        return None
    from jupyter_core.paths import jupyter_runtime_dir  # noqa: PLC0415  # 30 ms that only a kernel pays

    # the files are read directly: jupyter_server.serverapp, which has a function for it, takes 0.5 s to import
    try:
        record = json.loads((Path(jupyter_runtime_dir()) / f"jpserver-{pid}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "url" in record else None
