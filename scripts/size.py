"""Print the size of worker/, api/ and shared/: lines of Python, the longest files and functions, the widest signatures.

tests/test_size.py holds the limits.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

from shared.settings import ROOT

FOLDERS = ("worker", "api", "shared")


@dataclass(frozen=True)
class Size:
    """Lines of Python in all, and (figure, place) of each file, function and signature, the largest first."""

    lines: int
    files: list[tuple[int, str]]
    functions: list[tuple[int, str]]
    signatures: list[tuple[int, str]]


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the parameters of a function, `self` and `cls` left out."""
    arguments = function.args
    listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len(listed) - (bool(listed) and listed[0].arg in ("self", "cls"))


def measure(root: Path = ROOT, folders: tuple[str, ...] = FOLDERS) -> Size:
    files, functions, signatures = [], [], []
    for path in (path for folder in folders for path in sorted((root / folder).rglob("*.py"))):
        text, name = path.read_text(), str(path.relative_to(root))
        files.append((text.count("\n"), name))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                place = f"{name}:{node.lineno} {node.name}"
                functions.append(((node.end_lineno or node.lineno) - node.lineno + 1, place))
                signatures.append((parameters(node), place))
    ranked = [sorted(rows, key=lambda row: (-row[0], row[1])) for rows in (files, functions, signatures)]
    return Size(sum(lines for lines, _ in files), *ranked)


if __name__ == "__main__":
    size = measure()
    print(f"{size.lines:,} lines of Python in {', '.join(f'{folder}/' for folder in FOLDERS)}")
    for title, rows in (
        ("lines a file", size.files),
        ("lines a function", size.functions),
        ("parameters a function", size.signatures),
    ):
        print(f"\n{title}")
        for figure, place in rows[:5]:
            print(f"{figure:6}  {place}")
