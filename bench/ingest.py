"""Ingest a folder, and compare it with bare parsing and embedding of the same chunks in one process on the same cores.

usage: python -m bench.ingest FOLDER     (a MANIFEST.csv in it, with the columns path and expected, is checked too)
"""

import contextlib
import csv
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

from shared import db
from shared.errors import UnreadableError
from shared.providers import minilm
from shared.providers.choice import LOCAL_MODEL
from shared.providers.embedder import embed_all
from shared.providers.local import LocalEmbedder
from shared.system.servers import Servers
from tests.conftest import KEY, System, free_port
from worker.indexing.chunking import chunk
from worker.indexing.inputs import chunk_sizes
from worker.parsing.child import parse_file

NOTE = "The bench's note says that the boathouse key hangs behind the third oar."


def bare(folder: Path, model: Path, cores: int) -> tuple[float, float, int]:
    """Return seconds of parsing and chunking, seconds of embedding, number of chunks: one process, `cores` threads."""
    embedder = LocalEmbedder(model, threads=cores)
    embedder.embed(["warm"])
    parsing = embedding = 0.0
    count = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        started = time.perf_counter()
        try:
            parsed = parse_file(str(path), path.name, 20_000_000)
        except UnreadableError:
            continue
        finally:
            parsing += time.perf_counter() - started
        started = time.perf_counter()
        texts = [c.content for c in chunk(parsed, embedder.count, *chunk_sizes(embedder, 0))]
        parsing += time.perf_counter() - started
        started = time.perf_counter()
        embed_all(embedder, texts, lambda _, __: None)
        embedding += time.perf_counter() - started
        count += len(texts)
    return parsing, embedding, count


@contextlib.contextmanager
def running(work: Path) -> Iterator[System]:
    """Run the system like `askfolder up` over an empty folder below `work`, and wait until everything is loaded."""
    inbox, data = work / "inbox", work / "data"
    inbox.mkdir()
    servers = Servers(data)
    servers.start()
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("ASKFOLDER_")} | {
        "DATABASE_URL": servers.database_url,
        "REDIS_URL": servers.redis_url,
        "ASKFOLDER_INBOX": str(inbox),
        "ASKFOLDER_DATA": str(data),
        "ASKFOLDER_PORT": str(port),
        "ASKFOLDER_ADMIN_KEY": KEY,
        "REMAP_SIGTERM": "SIGQUIT",
    }
    system = System(inbox, data, port, env)
    try:
        db.migrate(servers.database_url)
        system.start("web", "worker", "producer")
        for n in range(6):  # every worker process has loaded its model and its parser
            (inbox / f"first{n}.txt").write_text(f"So that everything is loaded, {n}.")
        while len(system.search("everything is loaded")) < 6:
            time.sleep(0.05)
        yield system
    finally:
        system.stop()
        servers.stop()


def ingest(folder: Path, work: Path) -> tuple[float, list[float], float, dict[str, dict[str, object]]]:
    """Ingest the folder, while notes are dropped into it every few seconds.

    Return the seconds until every file is ready or failed, the seconds until each note is found, the largest resident
    size of a process in MiB, and the documents.
    """
    most, done = 0, threading.Event()
    largest: Counter[str] = Counter()
    with running(work) as system:
        inbox = system.folder
        worker = psutil.Process(system.processes["worker"].pid)

        def watch() -> None:
            nonlocal most
            while not done.wait(0.2):
                for process in [worker, *worker.children(recursive=True)]:
                    try:
                        size = process.memory_info().rss
                        kind = "parser" if "worker.parsing.child" in " ".join(process.cmdline()) else "worker"
                    except psutil.Error:
                        continue
                    largest[kind] = max(largest[kind], size)
                    most = max(most, size)

        threading.Thread(target=watch, daemon=True).start()
        shutil.copytree(folder, work / "copy", symlinks=True)
        started = time.perf_counter()
        (work / "copy").rename(inbox / "dropped")
        total = sum(1 for p in (inbox / "dropped").rglob("*") if p.is_file()) + 6
        dropped, waits, searched = time.perf_counter(), list[float](), True
        while True:
            now = time.perf_counter()
            if searched and now - dropped > 8:
                (inbox / f"note{len(waits)}.md").write_text(f"{NOTE} Number {len(waits)} of the notes.")
                dropped, searched, total = now, False, total + 1
            elif not searched:
                name = f"note{len(waits)}.md"
                found = system.search(f"Where does the boathouse key hang? {name}", top_k=50, mode="lexical")
                if any(passage["source"] == name for passage in found):
                    waits.append(time.perf_counter() - dropped)
                    searched = True
            counts = system.call("GET", "/documents", limit=1)["counts"]
            if sum(counts.values()) == total and not counts.get("queued") and not counts.get("ingesting"):
                break
            time.sleep(0.2)
        seconds = time.perf_counter() - started
        print("largest resident sizes, MiB:", {kind: size >> 20 for kind, size in largest.items()})
        done.set()
        return seconds, waits, most / 2**20, {s.removeprefix("dropped/"): d for s, d in system.documents().items()}


def main(folder: Path) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = minilm.prepare(work / "data" / LOCAL_MODEL)
        parsing, embedding, chunks = bare(folder, model, cores)
        seconds, waits, most, documents = ingest(folder, work)
    baseline = parsing + embedding
    print(f"states: {dict(Counter(str(d['state']) for d in documents.values()))}, {chunks} chunks, {cores} cores")
    print(f"bare: {baseline:.1f} s (parsing and chunking {parsing:.1f}, embedding {embedding:.1f})")
    print(f"askfolder: {seconds:.1f} s; ratio to bare: {seconds / baseline:.2f}")
    within = f"median {statistics.median(waits):.2f} s, worst {max(waits):.2f} s"
    print(f"{len(waits)} notes dropped meanwhile were found within: {within}")
    print(f"largest worker process: {most:.0f} MiB")
    manifest = folder / "MANIFEST.csv"
    if manifest.exists():
        wrong = []
        with manifest.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            document = documents.get(row["path"], {"state": "missing", "error": ""})
            error = str(document["error"] or "")
            right = {
                "ready": document["state"] == "ready",
                "no_text": document["state"] == "failed" and "no text" in error,
                "later": document["state"] == "failed" and "not supported yet" in error,
            }[row["expected"]]
            if not right:
                wrong.append((row["path"], row["expected"], document["state"], error))
        print(f"manifest: {len(rows) - len(wrong)} of {len(rows)} as expected")
        for entry in wrong:
            print("  ", *entry)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
