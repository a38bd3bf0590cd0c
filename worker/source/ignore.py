"""Rules of `.askfolderignore` files, matched as git matches `.gitignore`."""

import codecs
import errno
import fnmatch
import os
import re
import stat
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gitmatch

from shared.log import log
from worker.source.paths import ancestors, decode, join

RULES = ".askfolderignore"  # in any folder; a later line or a deeper file overrides, the defaults come first
RULES_BYTES = 1_000_000
# Hidden files, files of editors, downloads and operating systems. A line of a file cannot hold the name "Icon\r".
_DEFAULTS = [*Path(__file__).with_name("ignored.txt").read_text(encoding="utf-8").splitlines(), "Icon\r"]
_DEFAULT = re.compile("|".join(map(fnmatch.translate, _DEFAULTS)), re.IGNORECASE)
_ALWAYS = (".git", RULES)  # ignored whatever a rule says


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one folder, last line first. `start`: length of the folder's path with its slash."""

    start: int
    patterns: tuple[gitmatch.Pattern[str], ...]


Chain = tuple[Rules, ...]  # the rules that apply in a folder: its own, then its parent's, …


class IgnoreRules:
    """The rules of all folders below `root`. A file of rules is read again after it changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._cache: dict[str, tuple[tuple[int, ...], Chain]] = {}
        self._warnings: set[str] = set()

    def ignores(self, key: str) -> bool:
        """Return True if a rule ignores this key or a folder above it, False if the rules cannot be read."""
        try:
            return self.chain(decode(self.root, key)) is None
        except OSError:
            return False  # a scan reports the folder as unreadable

    def entries(self, key: str) -> Iterator["os.DirEntry[str]"]:
        """Yield a folder's entries that are not ignored, and its file of rules. Raises OSError if it cannot be read."""
        folder = decode(self.root, key)
        chain = self.chain(folder)
        if chain is not None:
            chain = self.rules(folder) + chain
            with os.scandir(os.path.join(self.root, folder)) as scan:
                for entry in scan:
                    is_dir = entry.is_dir(follow_symlinks=False)
                    if entry.name == RULES or not is_ignored(join(folder, entry.name), is_dir, chain):
                        yield entry

    def chain(self, path: str) -> Chain | None:
        """Return the rules that apply to a relative path, None if they ignore it. Raises OSError as `rules`."""
        chain: Chain = ()
        folder = ""
        for current in (*ancestors(path), path) if path else ():
            chain = self.rules(folder) + chain
            is_dir = current != path or (bool(chain) and _is_dir(os.path.join(self.root, current)))
            if is_ignored(current, is_dir, chain):
                return None
            folder = current
        return chain

    def rules(self, folder: str) -> Chain:
        """Return the rules of the folder's own file, () if it has none. Raises OSError if the file cannot be read."""
        path = os.path.join(self.root, folder, RULES)
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        if not stat.S_ISREG(status.st_mode):
            return ()
        stamp = (status.st_mtime_ns, status.st_size, status.st_dev, status.st_ino)
        cached = self._cache.get(folder)
        if cached and cached[0] == stamp:
            return cached[1]
        try:
            if status.st_size > RULES_BYTES:
                raise OSError(errno.EFBIG, f"it is larger than {RULES_BYTES:,} bytes")
            lines = decode_rules(Path(path).read_bytes()).split("\n")
        except OSError as error:
            self._warn(f"{path} cannot be read ({error.strerror}): the documents of its folder stay unchanged.")
            raise
        patterns = self._compile(path, lines)
        chain = (Rules(len(folder) + 1 if folder else 0, tuple(reversed(patterns))),) if patterns else ()
        self._cache[folder] = stamp, chain
        return chain

    def _compile(self, path: str, lines: list[str]) -> list[gitmatch.Pattern[str]]:
        patterns = []
        for number, line in enumerate(lines, 1):
            try:
                # "/**/a" and "**/a" are equivalent, but gitmatch does not match the first one at a/b/a
                line = re.sub(r"^(!?)/(?=\*\*/)", r"\1", gitmatch.chomp(line))
                # macOS does not distinguish case in names; neither does git there
                regex = gitmatch.pattern2regex(line, ignorecase=sys.platform == "darwin")
                if regex:
                    patterns.append(regex.compile())
            except (gitmatch.InvalidPatternError, re.error):
                self._warn(f"{path}, line {number}: the pattern {line!r} is invalid and skipped; the others apply.")
        return patterns

    def _warn(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.add(message)
            log.warning(message, action="rules.wrong")


def _is_dir(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def is_ignored(path: str, is_dir: bool, chain: Chain) -> bool:
    """Return True if the rules ignore this entry. As in git, the last matching line of the deepest file decides."""
    name = path.rpartition("/")[2]
    if name in _ALWAYS:
        return True
    for rules in chain:
        # Composed and decomposed accents are the same name to people.
        below = path[rules.start :] if path.isascii() else unicodedata.normalize("NFC", path[rules.start :])
        for pattern in rules.patterns:
            if pattern.match(below, is_dir):
                return not pattern.negative
    return _DEFAULT.match(name) is not None


def decode_rules(raw: bytes) -> str:
    """Decode a file of rules: UTF-8, where other bytes stay as they are in names, or UTF-16 as Windows writes it."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = raw.decode("utf-16", "replace")
    else:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", text)
