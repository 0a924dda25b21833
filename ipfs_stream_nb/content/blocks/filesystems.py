"""Where a store lives by default, and on which filesystems it may: where maps and file locks are the same to all.

On network filesystems and on those that a hypervisor shares with its host, a map may show stale pages and a lock
may be local to one machine, so LMDB would be damaged silently (http://www.lmdb.tech/doc/, "Caveats").
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import psutil
from platformdirs import user_data_path

from ipfs_stream_nb.errors import StoreError

REPO_VARIABLE: Final = "IPFS_STREAM_NB_REPO"
"""The environment variable that moves the store elsewhere."""

_REMOTE: Final = frozenset(
    {
        *("9p", "acfs", "afpfs", "afs", "auristorfs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs"),
        *("fhgfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "mfs", "ncpfs", "nfs", "nfs3", "nfs4"),
        *("ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "quobyte", "smb", "smb2", "smb3", "smbfs"),
        *("vboxsf", "vmhgfs", "webdav", "wekafs"),
    }
)
_LOCAL_FUSE: Final = frozenset(
    {"fuse.bindfs", "fuse.cryfs", "fuse.encfs", "fuse.fuse-overlayfs", "fuse.gocryptfs", "fuse.mergerfs"}
)
"""FUSE filesystems over a local disk. Any other (sshfs, s3fs, rclone, …) is taken as remote."""


def default_repo() -> Path:
    """Where the store is kept: `$IPFS_STREAM_NB_REPO`, or the user's data directory."""
    given = os.environ.get(REPO_VARIABLE)
    return Path(given) if given else user_data_path("ipfs_stream_nb", appauthor=False) / "repo"


class Mount(NamedTuple):
    """One line of the mount table."""

    mountpoint: str
    fstype: str


def mount_table() -> list[Mount]:
    """All mounts of this system, in the order in which they were made."""
    return [Mount(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]


def filesystem_of(path: str | os.PathLike[str], mounts: Iterable[Mount] | None = None) -> Mount:
    """The mount that holds `path`, which need not exist yet; later mounts hide earlier ones at the same place."""
    real = Path(os.path.realpath(path))
    found = Mount("/", "")
    for mount in mount_table() if mounts is None else mounts:
        if real.is_relative_to(mount.mountpoint) and len(mount.mountpoint) >= len(found.mountpoint):
            found = mount
    return found


def is_remote(path: str | os.PathLike[str], mounts: Iterable[Mount] | None = None) -> bool:
    """Whether `path` is on a network or host-shared filesystem, where a store must not live."""
    fstype = filesystem_of(path, mounts).fstype.lower()
    return fstype in _REMOTE or (fstype.startswith("fuse.") and fstype not in _LOCAL_FUSE)


def require_local(path: str | os.PathLike[str], mounts: Iterable[Mount] | None = None) -> None:
    """Raise StoreError where `is_remote(path)`, saying what to do instead."""
    table = mount_table() if mounts is None else list(mounts)
    if is_remote(path, table):
        mount = filesystem_of(path, table)
        raise StoreError(
            f"the block store cannot live at {os.fspath(path)}: {mount.mountpoint} is a {mount.fstype} "
            f"filesystem, which is shared over a network or with a host, and memory maps and locks are not "
            f"safe on it. Set {REPO_VARIABLE} to a directory on a local disk"
        )
