"""Data files of words: a line is a name, a colon and its words. Lines that begin with # are comments."""

from pathlib import Path


def read_word_lists(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a data file as name → words, in the order of its lines."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: tuple(words.split()) for name, _, words in (line.partition(":") for line in lines)}
