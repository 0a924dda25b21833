"""Packages of the npm registry for tests with programs of others, installed once below the project's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path(__file__).parents[1] / ".cache") / "ipfs_stream_nb"
SECONDS = 120


def npm_package(name: str, version: str) -> Path:
    """The folder of a package; skips the test with the reason where it cannot be had."""
    home = CACHE / name
    module = home / "node_modules" / name
    if not (module / "package.json").exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed")
        home.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(home), f"{name}@{version}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            pytest.skip(f"the npm package {name} cannot be installed: {done.stderr.strip()[-200:]}")
    return module
