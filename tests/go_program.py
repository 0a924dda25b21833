"""Go programs for the interop tests: built once into .cache/ (or $XDG_CACHE_HOME), skipped where they cannot be."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
FETCH_SECONDS = 240
BUILD_SECONDS = 900


def build(sources: Path) -> Path:
    """The program whose go.mod, go.sum and main.go stand in `sources`; go.sum pins what is fetched for it."""
    if shutil.which("go") is None:
        pytest.skip(f"Go is not installed, so {sources.name} cannot be built")
    texts = [(sources / name).read_bytes() for name in ("go.mod", "go.sum", "main.go")]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or PROJECT / ".cache") / "ipfs_stream_nb"
    program = cache / f"{sources.name}-{hashlib.sha256(b''.join(texts)).hexdigest()[:16]}"
    if program.exists():
        return program
    cache.mkdir(parents=True, exist_ok=True)
    fetched = subprocess.run(
        ["go", "mod", "download"],
        cwd=sources,
        capture_output=True,
        text=True,
        timeout=FETCH_SECONDS,
        check=False,
    )
    if fetched.returncode:
        pytest.skip(f"the Go modules of {sources.name} cannot be fetched: {fetched.stderr.strip()[-200:]}")
    new = program.with_suffix(f".{os.getpid()}")
    subprocess.run(
        ["go", "build", "-trimpath", "-o", new, "."], cwd=sources, check=True, timeout=BUILD_SECONDS
    )
    new.replace(program)
    return program


def main() -> None:
    """Build all of them: before the tests, whose time-outs are meant for tests."""
    for sources in sorted(path.parent for path in (PROJECT / "tests").glob("**/go.mod")):
        try:
            print(f"{sources.name}: {build(sources).name}")
        except pytest.skip.Exception as reason:
            print(f"{sources.name}: {reason}")


if __name__ == "__main__":
    main()
