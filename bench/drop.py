"""Drop small files one by one into an idle system, and measure the seconds until /search finds each file.

usage: python -m bench.drop [COUNT]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.ingest import running
from shared.providers import minilm
from shared.providers.choice import LOCAL_MODEL


def main(count: int) -> None:
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        minilm.prepare(Path(name) / "data" / LOCAL_MODEL)
        with running(Path(name)) as system:
            for number in range(count):
                word = f"quokka{number}x"
                text = (
                    f"# Note {number}\n\nThe word of this note is {word}.\n\n"
                    + "It says little else, at some length. " * 26
                )
                started = time.perf_counter()
                (system.folder / f"note{number}.md").write_text(text)
                while not any(word in r["content"] for r in system.search(f"note {number} {word}", top_k=3)):
                    time.sleep(0.02)
                seconds.append(time.perf_counter() - started)
                time.sleep(0.2)
    print(f"{count} drops of {len(text)} bytes: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
