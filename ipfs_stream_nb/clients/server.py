"""Which server a client talks to: given by URL, or found as the Jupyter server that started this kernel.

A Jupyter server writes `jpserver-<pid>.json` into its runtime directory, readable by its user alone, and gives
its kernels its process id in JPY_PARENT_PID. Under JupyterHub the address and a token stand in the environment.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from yarl import URL

from ipfs_stream_nb.errors import BadRequestError

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # read, not bound
_PAGE = re.compile(
    r"(?P<base>(?:/user/[^/]+|/(?!user/)[^/]+)*?)/(?:lab|tree|doc|notebooks|edit|terminals|consoles)(?:/.*)?",
    re.DOTALL,
)
"""A page of Jupyter's below the base URL; a JupyterHub user may be called like one of them."""


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
        """Read a server's URL, also that of a page: as Jupyter prints it, or from the browser (`…/lab/tree/x.ipynb`).

        Raises BadRequestError for what is not an http or https URL.
        """
        if not isinstance(url, str):
            raise BadRequestError(
                f"the url is a text such as http://localhost:8888/, not a {type(url).__name__}"
            )
        try:
            parts, host, base_url = _taken_apart(url)
        except ValueError:
            raise BadRequestError(
                f"{url!r} is not a server's URL; one looks like http://localhost:8888/"
            ) from None
        if parts.user or parts.password:
            raise BadRequestError("give the token as connect(url, token=…), not as a user name in the URL")
        given = parts.query.get("token")
        page = _PAGE.fullmatch(base_url)
        # with a slash at its end and no token it is a base URL as a server tells it, whatever its name
        if page is not None and (given is not None or not parts.path.endswith("/")):
            base_url = page["base"]
        port = f":{parts.explicit_port}" if parts.explicit_port else ""
        return cls(
            url=f"{parts.scheme}://{host}{port}{base_url}/",
            base_url=f"{base_url}/",
            token=token or given,
            same_origin=same_origin,
            found=found,
            embedded=embedded,
        )

    @property
    def on_this_machine(self) -> bool:
        """Whether the address is a loopback one."""
        host = URL(self.url).host or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def _taken_apart(url: str) -> tuple[URL, str, str]:
    """The URL, its host to connect to and its path without the last slash. Raises ValueError."""
    parts = URL(url)
    if parts.scheme not in {"http", "https"} or not parts.host or parts.explicit_port == 0:
        raise ValueError
    host = parts.with_host(_ANY_ADDRESS.get(parts.host, parts.host)).host_subcomponent or ""
    # the path stays escaped as it is given: a server matches its routes by the letter
    return parts, host, URL(url, encoded=True).raw_path.rstrip("/")


def server_at(url: str, token: str | None = None) -> ServerInfo:
    """The server at a URL; this kernel's own one needs no token. Raises BadRequestError."""
    server = ServerInfo.at(url, token)
    own = next((own for own in servers_of_kernel() if own.url == server.url), None)
    return server if own is None else replace(own, token=server.token or own.token)


def servers_of_kernel(environ: Mapping[str, str] = os.environ) -> Iterator[ServerInfo]:
    """The servers that may have started this process, the surest first. None is asked whether it answers."""
    if "JUPYTERHUB_SERVICE_PREFIX" in environ and "JUPYTERHUB_SERVICE_URL" in environ:
        service = urlsplit(environ["JUPYTERHUB_SERVICE_URL"])
        address = f"{service.hostname or '127.0.0.1'}:{service.port or 80}"
        yield ServerInfo.at(
            f"{service.scheme}://{address}{environ['JUPYTERHUB_SERVICE_PREFIX']}",
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
