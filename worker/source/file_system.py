"""Kind of a file system: local or remote."""

from pathlib import Path

import psutil

_REMOTE = ("nfs", "cifs", "smb", "ceph", "afs", "9p", "lustre", "gpfs", "fuse.")  # other machines write to these unseen


def file_system(path: Path) -> str:
    """The kind of file system that an absolute path without links lies on ("ext4", "nfs4", …), "" when that cannot be told."""
    mounts = {Path(mount.mountpoint): str(mount.fstype) for mount in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "")


def is_remote(kind: str) -> bool:
    return kind.startswith(_REMOTE)
