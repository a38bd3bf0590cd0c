"""Data files beside the parsers."""

from pathlib import Path


def read_table(name: str) -> dict[str, str]:
    """Read the lines "key: value" of a file in this folder."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines)
