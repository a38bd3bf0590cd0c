"""Properties of file systems: local or remote, and files that another process is writing."""

import fcntl
import os
import signal
import sys
from pathlib import Path

import psutil

_REMOTE = ("nfs", "cifs", "smb", "ceph", "afs", "9p", "lustre", "gpfs", "fuse.")  # changes by other machines: no events
_remote_devices: dict[int, bool] = {}  # by device number; the list of mounts takes too long to read for each file


def file_system(path: Path) -> str:
    """Return the file system type of an absolute path without links ("ext4", "nfs4", …), "" if it is unknown."""
    mounts = {Path(mount.mountpoint): str(mount.fstype) for mount in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "")


def is_remote(kind: str) -> bool:
    return kind.startswith(_REMOTE)


def being_written(path: Path) -> bool | None:
    """Return True if a process of this machine has the file open for writing, None if that is unknown.

    The kernel grants a read lease only on a file without a writer. Leases need Linux, a local file system, and a file
    of this user (or CAP_LEASE).
    """
    if sys.platform != "linux":
        return None
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except BlockingIOError:
        return True  # another process holds a write lease
    except OSError:
        return None
    try:
        if _on_remote_device(file):
            return None  # NFS and SMB refuse with the same error when they merely hold no delegation
        # A process that opens the file for writing while we hold the lease waits until we return it, at once, and the
        # kernel signals us: SIGIO would end this process, SIGURG is ignored by default.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(file)
    return False


def _on_remote_device(file: int) -> bool:
    device = os.fstat(file).st_dev
    if device not in _remote_devices:
        _remote_devices[device] = is_remote(file_system(Path(os.readlink(f"/proc/self/fd/{file}"))))
    return _remote_devices[device]
