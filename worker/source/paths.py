"""Keys of files and folders: paths relative to a source's root, as valid Unicode."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

_PERCENT = {0xDC00 + byte: f"%{byte:02X}" for byte in range(0x80, 0x100)}


def encode(relative: str) -> str:
    """Return the key of a path relative to the root; bytes that are not UTF-8 are percent-encoded."""
    if relative.isascii():
        return relative
    return os.fsencode(relative).decode("utf-8", "surrogateescape").translate(_PERCENT)


def decode(root: Path, key: str) -> str:
    """Return the path of a key, relative to the root, as the file system spells it."""
    if "%" not in key or os.path.lexists(root / key):
        return key
    decoded = re.sub("%([89A-F][0-9A-F])", lambda match: chr(0xDC00 + int(match[1], 16)), key)
    return os.fsdecode(decoded.encode("utf-8", "surrogateescape"))


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def ancestors(key: str) -> Iterator[str]:
    """Yield the folders above a key from the top down, the root ("") left out."""
    return (key[:place] for place, character in enumerate(key) if character == "/")
