"""Rules of `.askfolderignore` files, matched as git matches `.gitignore`."""

import codecs
import fnmatch
import re
import unicodedata
from dataclasses import dataclass

import gitmatch

RULES = ".askfolderignore"  # in any folder, in the syntax of .gitignore; a later or deeper rule wins, these defaults are the first

IGNORED = (
    ".*",  # hidden: also .git, .DS_Store, ._*, .~lock.*#, .#*, .*.swp, .nfs*, .Trash-*, .goutputstream-*
    "~$*",
    "*.tmp",
    "*.tmp.[0-9]*",
    "*~",
    "#*#",
    "*.sw[opx]",
    "4913",
    "*.sb-????????-??????",
    "*___jb_???___",  # editors
    "*.part",
    "*.partial",
    "*.crdownload",
    "*.download",
    "*.opdownload",
    "*.filepart",
    "*.aria2",
    "*.!ut",
    "*.!qB",  # downloads
    "node_modules",
    "__pycache__",
    "__MACOSX",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "Icon[\r]",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "@eaDir",
    "#recycle",
    "#snapshot",
)

_IGNORED = re.compile("|".join(fnmatch.translate(pattern) for pattern in IGNORED), re.IGNORECASE)

_NEVER = (".git", RULES)  # whatever a rule says: one is no document, in the other none is readable

RULES_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one folder, last line first. `start`: where a path relative to the root becomes relative to that folder."""

    start: int
    patterns: tuple[gitmatch.Pattern[str], ...]


Chain = tuple[Rules, ...]  # what holds in a folder: its own rules, then its parent's, …


def is_ignored(names: str, name: str, is_dir: bool, chain: Chain) -> bool:
    """Whether this entry is ignored, its parents not considered: the last matching line of the deepest file decides, as in git."""
    if name in _NEVER:
        return True
    for rules in chain:
        # a name is the same to people however its accents are stored
        below = names[rules.start :] if names.isascii() else unicodedata.normalize("NFC", names[rules.start :])
        for pattern in rules.patterns:
            if pattern.match(below, is_dir):
                return not pattern.negative
    return _IGNORED.match(name) is not None


def rules_text(raw: bytes) -> str:
    """A file of rules: UTF-8 (other bytes stand for themselves, as they do in names) or what Windows calls Unicode."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = raw.decode("utf-16", "replace")
    else:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", text)
