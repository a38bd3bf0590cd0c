"""Where documents come from. A source has `discover` (what is there now) and `fetch` (one file's bytes), keys relative to its root."""

import contextlib
import fnmatch
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import PermanentError, TransientError, UnreadableError

IGNORED = (
    ".*", "~$*", "*~", "#*#", "*.tmp", "*.swp", "*.part", "*.partial", "*.crdownload", "*.download", "node_modules", "__pycache__",
    "Thumbs.db", "desktop.ini", "lost+found",
)  # fmt: skip
_IGNORED = re.compile("|".join(fnmatch.translate(pattern) for pattern in IGNORED))


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a source. `revision`: "maybe changed"; `modified`: seconds since the epoch."""

    key: str
    revision: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Fetched:
    path: Path
    revision: str
    sha256: bytes


class FolderSource:
    """A folder, mirrored: never written to. Symlinks are not followed."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self.root = root

    def discover(self, below: Iterable[str] | None = None) -> tuple[list[Found], list[str]]:
        """Files at or below these keys (None: all), and the keys of what could not be looked into.

        Raises PermanentError when the root itself is missing or closed: nothing may be concluded from that.
        """
        try:
            os.scandir(self.root).close()
        except OSError as error:
            raise PermanentError(
                f"The folder {self.root} cannot be read ({error.strerror}): nothing is changed until it is back. "
                "Check that it exists, is mounted, and may be read by this user."
            ) from None
        found: list[Found] = []
        closed: list[str] = []
        starts = [""] if below is None else list(below)
        stack = [self.path(key) if key else self.root for key in starts if not self.ignores(key)]
        while stack:
            path = stack.pop()
            try:
                status = os.stat(path) if path == self.root else os.lstat(path)  # only the root itself may be a link
                if stat.S_ISREG(status.st_mode):
                    found.append(Found(self.key(path), revision(status), status.st_size, status.st_mtime))
                elif stat.S_ISDIR(status.st_mode):
                    with os.scandir(path) as entries:
                        stack.extend(Path(entry.path) for entry in entries if not _IGNORED.match(entry.name))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                closed.append(self.key(path))
        return found, closed

    @contextlib.contextmanager
    def fetch(self, key: str) -> Iterator[Fetched]:
        """The file as it is now. Raises TransientError, at the end too, when it changed while it was being read."""
        path = self.path(key)
        before = _status(path, key)
        digest = _hash(path, key)
        yield Fetched(path, revision(before), digest)
        if revision(_status(path, key)) != revision(before) or _hash(path, key) != digest:
            raise TransientError(
                f"{key} changed while it was being read; it is read again when it stands still.", retry_after=2
            )

    def ignores(self, key: str) -> bool:
        return any(_IGNORED.match(part) for part in key.split("/") if part)

    def key(self, path: Path) -> str:
        """The path relative to the root; bytes that are not UTF-8 are percent-encoded."""
        raw = os.fsencode(os.path.relpath(path, self.root))
        return raw.decode("utf-8", "surrogateescape").translate(_PERCENT) if raw != b"." else ""

    def path(self, key: str) -> Path:
        plain = self.root / key
        if "%" not in key or os.path.lexists(plain):
            return plain
        undone = re.sub("%([89A-F][0-9A-F])", lambda m: chr(0xDC00 + int(m[1], 16)), key)
        return self.root / os.fsdecode(undone.encode("utf-8", "surrogateescape"))


_PERCENT = {0xDC00 + byte: f"%{byte:02X}" for byte in range(0x80, 0x100)}


def revision(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"


def _status(path: Path, key: str) -> os.stat_result:
    try:
        status = os.lstat(path)
    except OSError as error:
        raise TransientError(f"{key} is not there any more ({error.strerror}).", retry_after=2) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError(f"{key} is not a plain file: links and devices are not followed.")
    return status


def _hash(path: Path, key: str) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        raise TransientError(f"{key} is not there any more.", retry_after=2) from None
    except PermissionError:
        raise UnreadableError(
            f"{key} may not be read by this user: change its permissions, then run: askfolder retry"
        ) from None
    except OSError as error:
        raise TransientError(f"{key} could not be read ({error.strerror}); it is tried again.") from None
