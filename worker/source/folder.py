"""A folder as a source of documents: `discover` lists its files, `fetch` opens one. Keys are relative to the root."""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import PermanentError, TransientError, UnreadableError
from worker.source.ignore import RULES, Chain, IgnoreRules, is_ignored
from worker.source.paths import ancestors, decode, encode, join


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of a source. `revision` changes with size and mtime; `modified`: seconds since the epoch."""

    key: str
    revision: str
    size: int
    modified: float


@dataclass(slots=True)
class Listing:
    """The result of `discover`. `closed`: keys of unreadable files and folders; `folders`: number of folders read."""

    files: list[FoundFile] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    folders: int = 0


@dataclass(frozen=True, slots=True)
class Fetched:
    path: Path
    revision: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class _Folder:
    path: str  # relative to the root
    key: str
    chain: Chain  # the rules of the folders above


class FolderSource:
    """A folder, mirrored and never written to. Links are not followed, except the root and files of rules."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rules = IgnoreRules(root)

    # --- listing ---

    def discover(self, below: Iterable[str] | None = None) -> Listing:
        """List the files at or below these keys (None: all) that are not ignored.

        Raises PermanentError if the root is missing, unreadable or replaced meanwhile: nothing may be concluded then.
        """
        before = self.identity()
        listing = Listing()
        folders: list[_Folder] = []
        for key in _topmost({""} if below is None else set(below)):
            folders += self._start(key, listing)
        while folders:
            folders += self._list(folders.pop(), listing)
        if self.identity() != before:
            raise PermanentError(f"The folder {self.root} was replaced during the scan: nothing is changed yet.")
        if "" in listing.closed:
            raise PermanentError(
                f"{self.root / RULES} cannot be read, so the files to ignore are unknown: nothing is changed until the "
                "file can be read. Make it readable for this user, or remove it."
            )
        return listing

    def _start(self, key: str, listing: Listing) -> list[_Folder]:
        """Add the file at `key` to the listing, or return the folder at `key`."""
        path = decode(self.root, key)
        try:
            chain = self.rules.chain(path)
            status = self._status(path) if chain is not None else None
        except OSError:
            listing.closed.append(key)
            return []
        if chain is not None and status is not None:
            if stat.S_ISDIR(status.st_mode):
                return [_Folder(path, key, chain)]
            if stat.S_ISREG(status.st_mode):
                listing.files.append(_file(key, status))
        return []

    def _list(self, folder: _Folder, listing: Listing) -> list[_Folder]:
        """Add a folder's files to the listing and return its subfolders."""
        try:
            chain = self.rules.rules(folder.path) + folder.chain
            with os.scandir(os.path.join(self.root, folder.path)) as scan:
                entries = list(scan)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError:
            listing.closed.append(folder.key)
            return []
        listing.folders += 1
        subfolders = []
        for entry in entries:
            path, key = join(folder.path, entry.name), join(folder.key, encode(entry.name))
            try:
                is_dir = entry.is_dir(follow_symlinks=False)
                if is_ignored(path, is_dir, chain):
                    continue
                if is_dir:
                    subfolders.append(_Folder(path, key, chain))
                elif entry.is_file(follow_symlinks=False):
                    listing.files.append(_file(key, entry.stat(follow_symlinks=False)))
            except FileNotFoundError:
                continue
            except OSError:
                listing.closed.append(key)
        return subfolders

    def identity(self) -> str:
        """Return device and inode of the root. Raises PermanentError if it is missing or unreadable."""
        try:
            os.scandir(self.root).close()
            status = os.stat(self.root)
        except OSError as error:
            raise PermanentError(
                f"The folder {self.root} cannot be read ({error.strerror}): nothing is changed until it can be read. "
                "Check that it exists, is mounted, and may be read by this user."
            ) from None
        return f"{status.st_dev}:{status.st_ino}"

    # --- reading ---

    @contextlib.contextmanager
    def fetch(self, key: str) -> Iterator[Fetched]:
        """Yield the file at `key`. Raises TransientError, also at the end, if the file changed meanwhile."""
        path = self.path(key)
        before = _revision(self._regular_file(key))
        digest = self.hash(key)
        yield Fetched(path, before, digest)
        if _revision(self._regular_file(key)) != before or self.hash(key) != digest:
            raise TransientError(
                f"{key} changed while it was being read; it is read again when it stops changing.", retry_after=2
            )

    def hash(self, key: str) -> bytes:
        """Return the SHA-256 of the file's bytes. Raises UnreadableError or TransientError."""
        try:
            # O_NONBLOCK: opening a pipe in the file's place must not block; regular files ignore the flag.
            with open(os.open(self.path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise UnreadableError(_NOT_FOLLOWED.format(key))
                return hashlib.file_digest(file, "sha256").digest()
        except FileNotFoundError:
            raise TransientError(f"{key} no longer exists.", retry_after=2) from None
        except PermissionError:
            raise UnreadableError(
                f"{key} may not be read by this user: change its permissions, then run: askfolder retry"
            ) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UnreadableError(_NOT_FOLLOWED.format(key)) from None
            raise TransientError(f"{key} could not be read ({error.strerror}); it is tried again.") from None

    # --- keys and paths ---

    def path(self, key: str) -> Path:
        return self.root / decode(self.root, key)

    def _status(self, path: str) -> os.stat_result | None:
        """Return the status of a relative path, None if it is missing or behind a link. Raises OSError if unknown."""
        try:
            if not path:
                return os.stat(self.root)
            return None if self._behind_link(path) else os.lstat(os.path.join(self.root, path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _behind_link(self, path: str) -> bool:
        return any(os.path.islink(os.path.join(self.root, folder)) for folder in ancestors(path))

    def _regular_file(self, key: str) -> os.stat_result:
        """Return a file's status. Raises TransientError if it is missing, UnreadableError if it is not regular."""
        path = decode(self.root, key)
        try:
            status = os.lstat(os.path.join(self.root, path))
        except OSError as error:
            raise TransientError(f"{key} no longer exists ({error.strerror}).", retry_after=2) from None
        if not stat.S_ISREG(status.st_mode) or self._behind_link(path):
            raise UnreadableError(_NOT_FOLLOWED.format(key))
        return status


_NOT_FOLLOWED = "{} is not a regular file: links and devices are not followed."


def _revision(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"


def _file(key: str, status: os.stat_result) -> FoundFile:
    return FoundFile(key, _revision(status), status.st_size, status.st_mtime)


def _topmost(keys: set[str]) -> list[str]:
    """Return the keys without those below another one, so that no file is listed twice."""
    return [""] if "" in keys else [key for key in keys if keys.isdisjoint(ancestors(key))]
