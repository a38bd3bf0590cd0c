"""Measure the ledger's statements with many documents, and its rates; with --beside, also those of another checkout.

usage: python -m bench.ledger [COUNT] [--beside DIR]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from shared import db
from shared.ledger import claims, documents, generations, listing, sources
from shared.models import Parsed
from shared.system.servers import Servers

ROUNDS = 5  # rounds, with both checkouts in turn
TURNS = 2000  # heartbeats and documents in a round
METADATA = {"author": "Anna", "tags": ["heron", "stork"], "date": "2024-05-01"}
PARSED = Parsed("The heron stands still.", "text", "text", metadata=METADATA)


def timed(name: str, call: Callable[[], object], times: int = 20) -> None:
    call()
    started = time.perf_counter()
    for _ in range(times):
        call()
    print(f"{name:<44} {(time.perf_counter() - started) / times * 1000:9.2f} ms")


def main(count: int, only_rates: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        servers = Servers(Path(name) / "data", valkey=False)
        servers.start()
        try:
            db.migrate(servers.database_url)
            with db.connect(servers.database_url) as connection:
                source, files = fill(connection, count)
                if only_rates:
                    print(json.dumps(rates(connection, source)))
                else:
                    measure(connection, source, files)
        finally:
            servers.stop()


def fill(connection: db.Connection, count: int) -> tuple[int, list[tuple[str, str, int]]]:
    """Queue files, and make half of them ready. Return the source and the files."""
    generations.want(connection, "local", "model", "", 8, "1", "1")
    source = sources.source(connection, "folder", "/somewhere")
    files = [(f"folder{n % 500}/file{n}.txt", f"{n}-100", 100 + n % 5000) for n in range(count)]
    started = time.perf_counter()
    documents.enqueue(connection, source, files, bulk=True)
    print(f"{f'queue {count:,} new files':<44} {(time.perf_counter() - started) * 1000:9.2f} ms", file=sys.stderr)
    connection.execute(
        "UPDATE document SET state = 'ready', live_revision = 'x', live_sha256 = '\\x00' WHERE id % 2 = 0"
    )
    connection.execute("VACUUM ANALYZE document")
    return source, files


def measure(connection: db.Connection, source: int, files: list[tuple[str, str, int]]) -> None:
    documents.published(connection, [due.id for due in documents.due(connection, [source], 24)])
    timed("what is due", lambda: documents.due(connection, [source], 27))
    timed("what is in flight", lambda: documents.in_flight(connection))
    timed("200 keys", lambda: documents.known(connection, source, [key for key, _, _ in files[:200]]))
    timed("a folder", lambda: documents.known(connection, source, ["folder7"]))
    timed("all keys", lambda: documents.known(connection, source), 2)
    timed("sweep", lambda: documents.sweep(connection))
    timed("counts", lambda: listing.counts(connection))
    timed("load", lambda: listing.load(connection))
    timed("problems", lambda: sources.problems(connection))
    for name, value in rates(connection, source).items():
        print(f"{name:<44} {value:9.1f}")


def rates(connection: db.Connection, source: int) -> dict[str, float]:
    """Measure heartbeats and progress of one claim, then documents from `due` to `ready` in all steps of a worker."""
    result: dict[str, float] = {}
    claim = claims.claim(connection, documents.due(connection, [source], 1)[0].id, "here:1")
    assert claim
    for name, call in (
        ("heartbeat", lambda: claims.heartbeat(connection, claim)),
        ("progress", lambda: claims.progress(connection, claim, "embedding", 1, 2)),
    ):
        call()
        connection.execute("CHECKPOINT")
        call()
        before, started = _wal(connection), time.perf_counter()
        for _ in range(TURNS):
            call()
        result[f"{name}: µs"] = (time.perf_counter() - started) / TURNS * 1e6
        result[f"{name}: bytes of WAL"] = (_wal(connection) - before) / TURNS
    before, started, done = _wal(connection), time.perf_counter(), 0
    while done < TURNS:
        due = documents.due(connection, [source], 24)
        documents.published(connection, [document.id for document in due])
        for document in due:
            ingest(connection, document.id)
        done += len(due)
    result["published, claimed and ready: a second"] = done / (time.perf_counter() - started)
    result["a document: bytes of WAL"] = (_wal(connection) - before) / done
    return result


def ingest(connection: db.Connection, document_id: int) -> None:
    """Write to the ledger like a worker, for a document with one batch of embeddings."""
    claim = claims.claim(connection, document_id, "here:1")
    assert claim
    claims.progress(connection, claim, "chunking")
    claims.progress(connection, claim, "embedding", 0, 1)
    claims.progress(connection, claim, "embedding", 1, 1, further=True)
    claims.progress(connection, claim, "storing")
    with connection.transaction():
        claims.lock(connection, claim)
        claims.set_text(connection, claim, PARSED, claim.wanted_revision, b"x")
        claims.ready(connection, claim)


def _wal(connection: db.Connection) -> float:
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row
    return float(row[0])


def compare(count: int, beside: Path) -> None:
    """Measure the rates of this and another checkout in turn, and print the medians and their ratio."""
    here = Path(__file__).resolve().parents[1]
    runs: dict[Path, list[dict[str, float]]] = {here: [], beside.resolve(): []}
    for _ in range(ROUNDS):
        for checkout, results in runs.items():
            command = [str(checkout / ".venv/bin/python"), __file__, str(count), "--rates"]
            environment = os.environ | {"PYTHONPATH": str(checkout)}
            output = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, check=True).stdout
            results.append(json.loads(output))
    print(f"{'':<44} {'here':>9} {'beside':>9}  ratio")
    for name in runs[here][0]:
        mine, theirs = (statistics.median(result[name] for result in results) for results in runs.values())
        print(f"{name:<44} {mine:9.1f} {theirs:9.1f}  {mine / theirs:5.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("count", nargs="?", type=int, default=100_000)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--rates", action="store_true")
    options = parser.parse_args()
    if options.beside:
        compare(options.count, options.beside)
    else:
        main(options.count, options.rates)
