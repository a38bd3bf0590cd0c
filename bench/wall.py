"""Measure the cost of the parsing child: read the same files in this process and in the child, in turns.

usage: python -m bench.wall [FOLDER]     (reads FOLDER's files too, at most 40 of each format)
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from shared.errors import UnreadableError
from tests.worker.hostile import document, one_page, pdf, workbook
from worker.parsing.child import parse_file
from worker.parsing.parser import ROOT, Parser

ROUNDS = 25
FOLDER_ROUNDS = 5
MOST = 40
WORDS = "The boathouse opens at eight in winter, and at half past six in summer. "


def generate(folder: Path) -> None:
    """Write one file of a few kilobytes in each format."""
    paragraph = f"<w:p><w:r><w:t>{WORDS * 4}</w:t></w:r></w:p>"
    row = "".join(f'<c t="str"><v>{word}</v></c>' for word in WORDS.split())
    files: dict[str, bytes] = {
        "a.md": f"# Rules\n\n{WORDS * 40}\n\n## Hours\n\n{WORDS * 20}\n".encode(),
        "a.txt": (WORDS * 60).encode(),
        "a.csv": ("boat,rule\n" + f"one,{WORDS}\n" * 50).encode(),
        "a.py": ("def row(boat):\n    return boat + 1\n\n\n" * 80).encode(),
        "a.html": f"<html><h1>Rules</h1>{f'<p>{WORDS}</p>' * 50}</html>".encode(),
        "a.docx": document(paragraph * 20),
        "a.xlsx": workbook(f"<row>{row}</row>" * 20),
        "a.pdf": pdf(one_page()),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)


def clock(act: Callable[[], object]) -> float:
    """Call the function and return the milliseconds."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def compare(parser: Parser, paths: list[Path], rounds: int) -> None:
    """Print the median milliseconds of a document of each format: in this process, in the child, and the difference."""
    direct: dict[str, list[float]] = defaultdict(list)
    walled: dict[str, list[float]] = defaultdict(list)
    between: dict[str, list[float]] = defaultdict(list)
    formats: dict[Path, str] = {}
    for path in paths:
        try:
            formats[path] = parser.parse(path, path.name).format  # the first document of a format loads its libraries
            parse_file(str(path), path.name, parser.max_text_chars)
        except UnreadableError:
            continue
    for number in range(rounds):
        for path, format in formats.items():

            def here(path: Path = path) -> object:
                return parse_file(str(path), path.name, parser.max_text_chars)

            def behind(path: Path = path) -> object:
                return parser.parse(path, path.name)

            if number % 2:
                there, plain = clock(behind), clock(here)
            else:
                plain, there = clock(here), clock(behind)
            direct[format].append(plain)
            walled[format].append(there)
            between[format].append(there - plain)
    print(f"{'format':10}{'files':>6}{'direct ms':>12}{'walled ms':>12}{'difference':>12}{'ratio':>8}")
    for format in direct:
        plain, there = statistics.median(direct[format]), statistics.median(walled[format])
        count = sum(found == format for found in formats.values())
        difference = statistics.median(between[format])
        print(f"{format:10}{count:6}{plain:12.2f}{there:12.2f}{difference:12.2f}{there / plain:8.2f}")


def guards() -> None:
    """Print the cost of each guard separately."""
    script = (
        "import time, statistics, os\nfrom worker.parsing import limits\n"
        "def ms(act, n=1):\n    t = time.perf_counter()\n    for _ in range(n): act()\n"
        "    return (time.perf_counter() - t) * 1000 / n\n"
        "call = lambda: min(ms(lambda: os.stat('/'), 500) for _ in range(200))\nplain = call()\n"
        "print(f'{ms(lambda: limits.die_with(os.getppid())):.3f} ms at a start: end with the parent')\n"
        "print(f'{ms(limits.deny_calls):.3f} ms at a start: the filter for calls')\n"
        "filtered = call()\n"
        "print(f'{(filtered - plain) * 1e6:+.0f} ns each call to the kernel: the same filter')\n"
        "print(f'{ms(lambda: limits.set_limits(1 << 30)):.3f} ms at a start: all limits with a second filter')\n"
        "print(f'{ms(lambda: limits.allow(100), 2000):.4f} ms a document: time and processor time')\n"
    )
    pipe = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(pipe.stdout, end="")
    with Parser() as parser, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_text("words")
        parser.parse(path, path.name)
        print(
            f"{statistics.median(clock(parser.resident_bytes) for _ in range(200)):.4f} ms a document: "
            "reading its resident memory"
        )
        starts = []
        for _ in range(7):
            parser.close()
            starts.append(clock(lambda: parser.parse(path, path.name)))
        print(f"{statistics.median(starts):.0f} ms: a new child with its first document, after one that misbehaved")


def main() -> None:
    with tempfile.TemporaryDirectory() as work, Parser() as parser:
        folder = Path(work)
        generate(folder)
        print(f"Small files, {ROUNDS} rounds, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores:")
        compare(parser, sorted(folder.iterdir()), ROUNDS)
        if len(sys.argv) > 1:
            chosen: dict[str, list[Path]] = defaultdict(list)
            for path in sorted(Path(sys.argv[1]).rglob("*")):
                if path.is_file() and len(chosen[path.suffix]) < MOST:
                    chosen[path.suffix].append(path)
            print(f"\n{sys.argv[1]}, {FOLDER_ROUNDS} rounds:")
            compare(parser, [path for paths in chosen.values() for path in paths], FOLDER_ROUNDS)
    print("\nGuards:")
    guards()


if __name__ == "__main__":
    main()
