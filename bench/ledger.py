"""What the ledger's statements take with many documents. usage: python -m bench.ledger [COUNT]"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from shared import db
from shared.ledger import claims, documents, generations, listing, sources
from shared.system.servers import Servers


def timed(name: str, call: Callable[[], object], times: int = 20) -> None:
    call()
    started = time.perf_counter()
    for _ in range(times):
        call()
    print(f"{name:<44} {(time.perf_counter() - started) / times * 1000:9.2f} ms")


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        servers = Servers(Path(name) / "data", valkey=False)
        servers.start()
        try:
            db.migrate(servers.database_url)
            with db.connect(servers.database_url) as connection:
                measure(connection, count)
        finally:
            servers.stop()


def measure(connection: db.Connection, count: int) -> None:
    generations.want(connection, "local", "model", "", 8, "1", "1")
    source = sources.source(connection, "folder", "/somewhere")
    files = [(f"folder{n % 500}/file{n}.txt", f"{n}-100", 100 + n % 5000) for n in range(count)]
    started = time.perf_counter()
    documents.enqueue(connection, source, files, bulk=True)
    print(f"{f'queue {count:,} new files':<44} {(time.perf_counter() - started) * 1000:9.2f} ms")
    connection.execute(
        "UPDATE document SET state = 'ready', live_revision = 'x', live_sha256 = '\\x00' WHERE id % 2 = 0"
    )
    connection.execute("VACUUM ANALYZE document")
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
    claim = claims.claim(connection, documents.due(connection, [source], 1)[0].id, "here:1")
    assert claim
    timed("progress", lambda: claims.progress(connection, claim, "embedding", 1, 2), 500)
    durable = "UPDATE document SET stage = 'embedding', updated_at = now() WHERE id = %s"
    timed("the same, waiting for the disk", lambda: connection.execute(durable, [claim.id]), 500)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
