"""A real JupyterLab for the tests: its own process, port, folder, settings and content store."""

from __future__ import annotations

import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Page

from kubo import free_ports

ROOT = Path(__file__).parents[2]
START_SECONDS = 60
# The question whether to fetch news, and the extension manager's look at the network, have no place in a test.
DISABLED = ("@jupyterlab/apputils-extension:announcements", "@jupyterlab/extensionmanager-extension")


@dataclass
class Lab:
    """One server. `start` it, `open` notebooks in pages, `stop` it."""

    folder: Path
    base_url: str = "/a%40b/"
    certificate: Path | None = None
    """A PEM file with its key: the server speaks TLS."""
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    process: subprocess.Popen[bytes] | None = None
    port: int = 0

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}{self.base_url}"

    @property
    def root(self) -> Path:
        """Where its notebooks are."""
        return self.folder / "notebooks"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def start(self) -> None:
        (self.port,) = free_ports(1)
        settings = self.folder / "config"
        (settings / "labconfig").mkdir(parents=True)
        self.root.mkdir()
        disabled = {"disabledExtensions": dict.fromkeys(DISABLED, True)}
        (settings / "labconfig" / "page_config.json").write_text(json.dumps(disabled))
        path = os.pathsep.join(
            [str(ROOT), str(ROOT / "jupyter_server_extension"), os.environ.get("PYTHONPATH", "")]
        )
        environment = os.environ | {
            "PYTHONPATH": path,
            "IPFS_STREAM_NB_REPO": str(self.folder / "repo"),
            "JUPYTER_CONFIG_DIR": str(settings),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(settings / "lab"),
            "JUPYTERLAB_WORKSPACES_DIR": str(settings / "workspaces"),
            "IPYTHONDIR": str(self.folder / "ipython"),
        }
        command = [
            *(
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--LabApp.expose_app_in_browser=True",
            ),
            *(
                f"--ServerApp.port={self.port}",
                "--ServerApp.port_retries=0",
                f"--ServerApp.base_url={self.base_url}",
            ),
            *(f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}"),
            "--ServerApp.jpserver_extensions=ipfs_stream_nb_server=True",
            *([f"--ServerApp.certfile={self.certificate}"] if self.certificate else []),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers("api/status"):
            assert self.process.poll() is None, f"JupyterLab ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"JupyterLab did not start:\n{self.log.read_text()}"
            time.sleep(0.2)

    def answers(self, path: str) -> bool:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"token {self.token}"})  # noqa: S310
        try:
            trusting = ssl._create_unverified_context()  # noqa: S323 - ours
            with urllib.request.urlopen(request, timeout=5, context=trusting) as response:  # noqa: S310 - ours
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """End the server, and with it its kernels, which are in its process group."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    # ---- notebooks

    def write(self, name: str, *cells: str) -> None:
        """Save a notebook with these code cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        nbformat.write(notebook, self.root / name)

    def log_in(self, page: Page) -> None:
        """Trade the token for the cookie that browsers have."""
        page.goto(f"{self.url}lab?token={self.token}&reset", wait_until="commit")
        page.wait_for_url(lambda url: "token=" not in url)

    def open(self, page: Page, name: str) -> None:
        """Open a notebook in JupyterLab and wait until its kernel is idle."""
        page.goto(f"{self.url}lab/tree/{name}?token={self.token}&reset", wait_until="commit")
        page.wait_for_function(
            """() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'""",
            timeout=60_000,
        )
        if page.evaluate("document.body.dataset.jpThemeLight") != "true":  # an earlier test's wish
            self.theme(page, "JupyterLab Light")

    def run_all(self, page: Page, name: str = "") -> dict[str, Any]:
        """Run all cells to their end; gives the notebook as it is then. Fails where a cell did."""
        if name:
            self.open(page, name)
        page.evaluate("async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        page.wait_for_function(
            """() => { const widget = window.jupyterapp.shell.currentWidget;
                return widget.sessionContext.session.kernel.status === 'idle'
                    && widget.content.model.toJSON().cells.every((c) => c.cell_type !== 'code' || !c.source.length
                        || c.execution_count || c.outputs.some((o) => o.output_type === 'error')); }""",
            timeout=120_000,
        )
        notebook: dict[str, Any] = page.evaluate(
            "window.jupyterapp.shell.currentWidget.content.model.toJSON()"
        )
        outputs = self._outputs(notebook)
        errors = ["\n".join(out["traceback"]) for out in outputs if out["output_type"] == "error"]
        assert not errors, errors[0]
        return notebook

    @staticmethod
    def _outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
        return [out for cell in notebook["cells"] for out in cell.get("outputs", [])]

    def printed(self, notebook: dict[str, Any]) -> str:
        """What the cells of a notebook have printed."""
        streams = [out for out in self._outputs(notebook) if out["output_type"] == "stream"]
        return "".join("".join(out["text"]) for out in streams)

    @staticmethod
    def theme(page: Page, name: str) -> None:
        """Change the theme: "JupyterLab Dark" or "JupyterLab Light"."""
        page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", name)
        page.wait_for_function(
            "dark => document.body.dataset.jpThemeLight === String(!dark)", arg="Dark" in name
        )
        page.locator("#jupyterlab-splash").wait_for(state="detached")
