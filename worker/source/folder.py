"""Where documents come from. A source has `discover` (what is there now) and `fetch` (one file's bytes), keys relative to its root."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import signal
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gitmatch

from shared.errors import PermanentError, TransientError, UnreadableError
from shared.log import log
from worker.source.file_system import file_system, is_remote
from worker.source.ignore import RULES, RULES_BYTES, Chain, Rules, is_ignored, rules_text


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of a source. `revision`: "maybe changed"; `modified`: seconds since the epoch."""

    key: str
    revision: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Listing:
    """What a look found. `closed`: keys of files and folders that could not be looked into; `folders`: seen, the root included."""

    found: list[FoundFile]
    closed: list[str]
    folders: int


@dataclass(frozen=True, slots=True)
class Fetched:
    path: Path
    revision: str
    sha256: bytes


class FolderSource:
    """A folder, mirrored: never written to. Symlinks are not followed, unless the root or a file of rules is one."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rules_read: dict[str, tuple[tuple[int, ...], Chain]] = {}
        self._said: set[str] = set()
        self._remote: dict[int, bool] = {}

    # --- looking ---

    def discover(self, below: Iterable[str] | None = None) -> Listing:
        """Files at or below these keys (None: all) that are not ignored.

        Raises PermanentError when the root is missing, closed or another folder at the end: nothing may be concluded from that.
        """
        before = self.identity()
        found: list[FoundFile] = []
        closed: list[str] = []
        stack: list[tuple[str, str, Chain]] = []
        folders = 0
        for key in _topmost({""} if below is None else set(below)):
            try:
                chain = self._chain(key)
                status = self._status(key) if chain is not None else None
            except OSError:
                closed.append(key)
                continue
            if chain is None or status is None:
                continue
            if stat.S_ISDIR(status.st_mode):
                stack.append((self._names(key), key, chain))
            elif stat.S_ISREG(status.st_mode):
                found.append(_found(key, status))
        while stack:
            names, key, chain = stack.pop()
            try:
                chain = self._rules(names) + chain
                with os.scandir(self._full(names)) as scan:
                    entries = list(scan)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                closed.append(key)
                continue
            folders += 1
            for entry in entries:
                child, child_key = _join(names, entry.name), _join(key, encode(entry.name))
                try:
                    is_dir = entry.is_dir(follow_symlinks=False)
                    if is_ignored(child, entry.name, is_dir, chain):
                        continue
                    if is_dir:
                        stack.append((child, child_key, chain))
                    elif entry.is_file(follow_symlinks=False):
                        found.append(_found(child_key, entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
                except OSError:
                    closed.append(child_key)
        if self.identity() != before:
            raise PermanentError(f"The folder {self.root} was replaced while it was looked at: nothing is changed yet.")
        if "" in closed:
            raise PermanentError(
                f"{self.root / RULES} cannot be read, so it is not known what may be read: nothing is changed until it can be. "
                "Make it readable for this user, or remove it."
            )
        return Listing(found, closed, folders)

    @contextlib.contextmanager
    def fetch(self, key: str) -> Iterator[Fetched]:
        """The file as it is now. Raises TransientError, at the end too, when it changed while it was being read."""
        path = self.path(key)
        before = self._file(key)
        digest = self.hash(key)
        yield Fetched(path, revision(before), digest)
        if revision(self._file(key)) != revision(before) or self.hash(key) != digest:
            raise TransientError(
                f"{key} changed while it was being read; it is read again when it stands still.", retry_after=2
            )

    def hash(self, key: str) -> bytes:
        """SHA-256 of the file's bytes. Raises UnreadableError or TransientError."""
        try:
            # O_NONBLOCK: a pipe that took the file's place must not hold us; a plain file doesn't mind
            with open(os.open(self.path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise UnreadableError(_NOT_FOLLOWED.format(key))
                return hashlib.file_digest(file, "sha256").digest()
        except FileNotFoundError:
            raise TransientError(f"{key} is not there any more.", retry_after=2) from None
        except PermissionError:
            raise UnreadableError(
                f"{key} may not be read by this user: change its permissions, then run: askfolder retry"
            ) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UnreadableError(_NOT_FOLLOWED.format(key)) from None
            raise TransientError(f"{key} could not be read ({error.strerror}); it is tried again.") from None

    def being_written(self, key: str) -> bool | None:
        """Whether some process of this machine has the file open for writing; None when that cannot be told.

        The kernel grants a read lease only when nobody has. It needs Linux, a local file system, and our own file (or CAP_LEASE).
        """
        if sys.platform != "linux":
            return None
        try:
            file = os.open(self.path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except BlockingIOError:
            return True  # somebody has a lease of his own on it, for writing
        except OSError:
            return None
        try:
            if self._is_remote(file):
                return None  # NFS and SMB refuse with the same error when they merely hold no delegation
            # Who opens it for writing while we hold the lease sends us a signal: SIGIO would end the process,
            # SIGURG is ignored unless somebody asks for it. He waits until the lease is given back, at once.
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

    def identity(self) -> str:
        """Which folder the root is now: device and inode. Raises PermanentError when it is missing or closed."""
        try:
            os.scandir(self.root).close()
            status = os.stat(self.root)
        except OSError as error:
            raise PermanentError(
                f"The folder {self.root} cannot be read ({error.strerror}): nothing is changed until it is back. "
                "Check that it exists, is mounted, and may be read by this user."
            ) from None
        return f"{status.st_dev}:{status.st_ino}"

    # --- ignoring ---

    def ignores(self, key: str) -> bool:
        """Whether this key, or a folder above it, is ignored. Looks at the rules of those folders only."""
        try:
            return self._chain(key) is None
        except OSError:
            return False  # it is not known; a look says so

    def entries(self, key: str) -> Iterator["os.DirEntry[str]"]:
        """What lies in a folder and is not ignored, and its rules. Raises OSError when it cannot be looked into."""
        chain = self._chain(key)
        if chain is not None:
            names = self._names(key)
            chain = self._rules(names) + chain
            with os.scandir(self._full(names)) as scan:
                for entry in scan:
                    is_dir = entry.is_dir(follow_symlinks=False)
                    if entry.name == RULES or not is_ignored(_join(names, entry.name), entry.name, is_dir, chain):
                        yield entry

    def _chain(self, key: str) -> Chain | None:
        """The rules that hold in the folder of this key; None when it is ignored. Raises OSError when rules cannot be read."""
        chain: Chain = ()
        above = ""
        names = self._names(key)
        for name in names.split("/") if names else ():
            chain = self._rules(above) + chain
            here = _join(above, name)
            is_dir = here != names or (bool(chain) and self._is_dir(here))
            if is_ignored(here, name, is_dir, chain):
                return None
            above = here
        return chain

    def _rules(self, folder: str) -> Chain:
        """What the folder's own file says, read again when it changed. Raises OSError when there is one that cannot be read."""
        path = os.path.join(self._full(folder), RULES)
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        if not stat.S_ISREG(status.st_mode):
            return ()
        stamp = (status.st_mtime_ns, status.st_size, status.st_dev, status.st_ino)
        known = self._rules_read.get(folder)
        if known and known[0] == stamp:
            return known[1]
        try:
            if status.st_size > RULES_BYTES:
                raise OSError(errno.EFBIG, f"it is larger than {RULES_BYTES:,} bytes")
            lines = rules_text(Path(path).read_bytes()).split("\n")
        except OSError as error:
            self._say(f"{path} cannot be read ({error.strerror}): its folder is left as it is until it can be.")
            raise
        patterns = []
        for number, line in enumerate(lines, 1):
            try:
                line = re.sub(
                    r"^(!?)/(?=\*\*/)", r"\1", gitmatch.chomp(line)
                )  # means the same, and gitmatch misses /**/a below a/b
                # macOS treats names that differ in case as one; so does git there
                regex = gitmatch.pattern2regex(line, ignorecase=sys.platform == "darwin")
                if regex:
                    patterns.append(regex.compile())
            except (gitmatch.InvalidPatternError, re.error):
                self._say(
                    f"{path}, line {number}: the pattern {line!r} is not understood and left out; the others hold."
                )
        chain = (Rules(len(folder) + 1 if folder else 0, tuple(reversed(patterns))),) if patterns else ()
        self._rules_read[folder] = stamp, chain
        return chain

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            log.warning(message, action="rules.wrong")

    # --- keys and paths ---

    def key(self, path: Path) -> str:
        """The path relative to the root; bytes that are not UTF-8 are percent-encoded."""
        names = os.path.relpath(path, self.root)
        return encode(names) if names != "." else ""

    def path(self, key: str) -> Path:
        return self.root / self._names(key)

    def _names(self, key: str) -> str:
        """The key as the file system has it, relative to the root."""
        if "%" not in key or os.path.lexists(self.root / key):
            return key
        undone = re.sub("%([89A-F][0-9A-F])", lambda m: chr(0xDC00 + int(m[1], 16)), key)
        return os.fsdecode(undone.encode("utf-8", "surrogateescape"))

    def _full(self, names: str) -> str:
        return os.path.join(self.root, names) if names else os.fspath(self.root)

    def _status(self, key: str) -> os.stat_result | None:
        """None when it is not there, or only behind a link. Raises OSError when it cannot be told."""
        names = self._names(key)
        try:
            if not names:
                return os.stat(self.root)
            return None if self._behind_link(names) else os.lstat(self._full(names))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _behind_link(self, names: str) -> bool:
        return any(
            os.path.islink(self._full(names[:place])) for place in range(len(names)) if names.startswith("/", place)
        )

    def _is_dir(self, names: str) -> bool:
        with contextlib.suppress(OSError):
            return stat.S_ISDIR(os.lstat(self._full(names)).st_mode)
        return False

    def _is_remote(self, file: int) -> bool:
        device = os.fstat(file).st_dev
        if device not in self._remote:
            self._remote[device] = is_remote(file_system(Path(os.readlink(f"/proc/self/fd/{file}"))))
        return self._remote[device]

    def _file(self, key: str) -> os.stat_result:
        """Raises TransientError when it is not there, UnreadableError when it is no plain file."""
        names = self._names(key)
        try:
            status = os.lstat(self._full(names))
        except OSError as error:
            raise TransientError(f"{key} is not there any more ({error.strerror}).", retry_after=2) from None
        if not stat.S_ISREG(status.st_mode) or self._behind_link(names):
            raise UnreadableError(_NOT_FOLLOWED.format(key))
        return status


_NOT_FOLLOWED = "{} is not a plain file: links and devices are not followed."
_PERCENT = {0xDC00 + byte: f"%{byte:02X}" for byte in range(0x80, 0x100)}


def encode(names: str) -> str:
    """The key of a path relative to the root."""
    if names.isascii():
        return names
    return os.fsencode(names).decode("utf-8", "surrogateescape").translate(_PERCENT)


def revision(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"


def _found(key: str, status: os.stat_result) -> FoundFile:
    return FoundFile(key, revision(status), status.st_size, status.st_mtime)


def _join(above: str, name: str) -> str:
    return f"{above}/{name}" if above else name


def _topmost(keys: set[str]) -> list[str]:
    """Keys that lie below no other of them: nothing is found twice."""
    if "" in keys:
        return [""]
    return [
        key for key in keys if not any(key[:place] in keys for place in range(len(key)) if key.startswith("/", place))
    ]
