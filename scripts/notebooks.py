"""Run every notebook's cells with nbval, in a repository of its own and without a Jupyter server.

Nobody is asked for content, unless $IPFS_API names a Kubo daemon or $IPFS_STREAM_NB_GATEWAYS gateways.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def main() -> int:
    """Return nbval's exit status."""
    with tempfile.TemporaryDirectory() as repo:
        nobody = {
            "IPFS_STREAM_NB_GATEWAYS": "",
            "IPFS_STREAM_NB_ROUTERS": "",
            "IPFS_PATH": os.devnull,
        }
        environment = nobody | os.environ | {"IPFS_STREAM_NB_REPO": repo}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--nbval-lax",
            "--nbval-current-env",
            "-p",
            "no:cacheprovider",
        ]
        # the notebooks' own warnings are theirs; nbval's are not ours to mend
        command += ["-W", "default", "--import-mode=prepend", str(NOTEBOOKS)]
        return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603  # our own command


if __name__ == "__main__":
    sys.exit(main())
