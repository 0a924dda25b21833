"""The servers that bench_http compares, each a process of its own that serves one file on loopback."""

# ruff: noqa: S310  # the URLs are those of servers that were started here

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

TOKEN = "benchmark"
START_SECONDS = 30.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(eq=False)
class Served:
    """A running server: where its file is, what to send with each request, whose memory to watch."""

    name: str
    port: int
    path: str
    command: list[str]
    headers: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.log = tempfile.TemporaryFile()  # closed in __exit__
        self.process = subprocess.Popen(
            self.command, env={**os.environ, **self.env}, stdout=self.log, stderr=self.log
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return self
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    self.log.seek(0)
                    raise RuntimeError(f"{self.name} does not start: {self.log.read()[-2000:]!r}") from None
                time.sleep(0.05)

    def __exit__(self, *_exc: object) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()

    @property
    def url(self) -> str:
        """The server's root."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process that serves."""
        assert self.process is not None
        return self.process.pid


def nginx(file: Path) -> Served:
    """nginx with sendfile and one worker, as a static file server is set up."""
    port = free_port()
    folder = file.parent
    config = folder / "nginx.conf"
    config.write_text(
        f"""
        daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
        user root;
        events {{ worker_connections 256; }}
        http {{
          access_log off; sendfile on; keepalive_requests 1000000;
          server {{ listen 127.0.0.1:{port}; root {folder}; }}
        }}
        """
    )
    return Served("nginx, sendfile", port, f"/{file.name}", ["nginx", "-p", str(folder), "-c", str(config)])


STARLETTE = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route

async def serve(request):
    return FileResponse(sys.argv[1])

app = Starlette(routes=[Route("/file", serve)])
uvicorn.run(app, port=int(sys.argv[2]), http="httptools", access_log=False, log_level="warning")
"""


def starlette(file: Path) -> Served:
    """Starlette's FileResponse under uvicorn with httptools."""
    port = free_port()
    return Served(
        "Starlette FileResponse", port, "/file", [sys.executable, "-c", STARLETTE, str(file), str(port)]
    )


def jupyter(file: Path) -> Served:
    """A Jupyter server with the extension; `add_file` gives it the file."""
    port = free_port()
    command = [sys.executable, "-m", "jupyter_server", "--allow-root", "--no-browser", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={file.parent}"]
    command += ["--ServerApp.jpserver_extensions={'ipfs_stream_nb_server': True}"]
    env = {"IPFS_STREAM_NB_REPO": str(file.parent / "repo"), "JUPYTER_CONFIG_DIR": str(file.parent)}
    return Served("the extension", port, "", command, env=env)


def add_file(served: Served, file: Path) -> float:
    """POST the file to the extension; set the path to get it by and a cookie as a browser has. Seconds."""
    start = time.perf_counter()
    with file.open("rb") as body:
        request = urllib.request.Request(f"{served.url}/ipfs", body, method="POST")
        request.add_header("Authorization", f"token {TOKEN}")
        request.add_header("Content-Length", str(file.stat().st_size))
        request.add_header("Content-Type", "application/octet-stream")
        with urllib.request.urlopen(request) as answer:
            served.path = f"/ipfs/{json.load(answer)['cid']}"
            cookies = answer.headers.get_all("Set-Cookie") or []
    served.headers = {"Cookie": "; ".join(cookie.partition(";")[0] for cookie in cookies)}
    return time.perf_counter() - start
