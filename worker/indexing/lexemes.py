"""Word statistics: the text search configuration of a document, and how many chunks have each lexeme.

Lexemes are counted in the background whenever enough has changed. Before the first count, and for lexemes newer than
the last one, each question counts its own (api/retrieval/lexemes.py).
"""

import threading

import psycopg
from psycopg import sql

from shared import db
from shared.db import Connection
from shared.errors import TransientError
from shared.ledger import generations
from shared.ledger.generations import Generation
from shared.log import log
from shared.text import languages
from shared.text.words import words

FEW_WORDS = 20  # a shorter text takes its collection's language: a wrong guess would hide it
VOTERS = 1_000  # documents, the oldest ones, that decide a collection's language
LEAST = 1_000  # chunks: fewer are counted by each question, exactly
SHARE = 0.1  # of the chunks must have changed since
LOCK = 0x61736B6C


def configuration(connection: Connection, collection_id: int, text: str) -> str:
    """Return the text search configuration for a document; a short text takes the one that most documents have."""
    if len(words(text[: languages.SAMPLE])) >= FEW_WORDS:
        return languages.configuration(text)
    row = connection.execute(
        """
        SELECT mode() WITHIN GROUP (ORDER BY configuration) FROM (
            SELECT configuration FROM document
            WHERE collection_id = %s AND configuration IS NOT NULL AND state NOT IN ('deleted', 'excluded')
            ORDER BY id LIMIT %s) AS voter
        """,
        [collection_id, VOTERS],
    ).fetchone()
    return row[0] if row and row[0] else languages.DEFAULT


class Counting:
    """Count the lexemes of generations in a thread with its own connection; `start()` does nothing while one runs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.thread: threading.Thread | None = None

    def start(self, connection: Connection) -> None:
        if self.thread and self.thread.is_alive():
            return
        due = [generation for generation in generations.active(connection) if _is_due(connection, generation)]
        if due:
            self.thread = threading.Thread(target=self._run, args=[due], daemon=True, name="lexemes")
            self.thread.start()

    def _run(self, due: list[Generation]) -> None:
        try:
            with db.connect(self.url) as connection:
                db.prepare(connection)
                for generation in due:
                    count(connection, generation)
        except (psycopg.Error, TransientError) as error:
            log.warning(f"Cannot count lexemes, trying again at the next sweep: {error}", action="lexemes.not_counted")


def _is_due(connection: Connection, generation: Generation) -> bool:
    row = connection.execute(
        """
        SELECT n_live_tup, n_tup_ins + n_tup_upd + n_tup_del, counted_changes,
               (SELECT sum(chunks) FROM lexeme_stats WHERE generation_id = id AND place = 0)
        FROM pg_stat_user_tables, generation WHERE relid = to_regclass(%s) AND id = %s
        """,
        [f"askfolder.lexical_{generation.id}", generation.id],
    ).fetchone()
    if row is None:
        return False
    chunks, changes, counted_changes, counted_chunks = row
    if counted_changes is None:
        return bool(chunks >= LEAST)
    changed = changes - counted_changes  # negative: the server's statistics were reset
    return bool(changed < 0 or changed >= max(LEAST, SHARE * float(counted_chunks or 0)))


def count(connection: Connection, generation: Generation) -> None:
    """Count the lexemes of a generation's chunks. The earlier counts stay in use until this transaction commits."""
    table = f"askfolder.lexical_{generation.id}"
    with connection.transaction():
        taken = connection.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", [LOCK, generation.id]).fetchone()
        if taken != (True,):  # another producer is counting
            return
        row = connection.execute(
            "SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables WHERE relid = to_regclass(%s)", [table]
        ).fetchone()
        connection.execute("DELETE FROM lexeme_stats WHERE generation_id = %s", [generation.id])
        chunks = 0
        per_collection = sql.SQL("SELECT collection_id, count(*) FROM {lexical} GROUP BY 1")
        for collection_id, number in connection.execute(per_collection.format(lexical=generation.lexical)).fetchall():
            chunks += number
            terms = sql.SQL("SELECT bm25_terms(bm25) FROM {lexical} WHERE collection_id = {collection}").format(
                lexical=generation.lexical, collection=sql.Literal(collection_id)
            )
            connection.execute(
                """
                INSERT INTO lexeme_stats (generation_id, collection_id, place, chunks, strong, stronger)
                VALUES (%s, %s, 0, %s, 0, 0)
                """,
                [generation.id, collection_id, number],
            )
            connection.execute(_COUNT, [generation.id, collection_id, terms.as_string(connection)])
        connection.execute(
            "UPDATE generation SET counted_changes = %s WHERE id = %s", [row[0] if row else 0, generation.id]
        )
    log.info(f"Counted the lexemes of {chunks:,} chunks", action="lexemes.counted", generation=generation.id)


_COUNT = """
INSERT INTO lexeme_stats (generation_id, collection_id, place, chunks, strong, stronger)
SELECT %s, %s, ltrim(word, 'ab')::integer AS place, sum(ndoc) FILTER (WHERE word !~ '^[ab]'),
       coalesce(sum(ndoc) FILTER (WHERE word LIKE 'a%%'), 0), coalesce(sum(ndoc) FILTER (WHERE word LIKE 'b%%'), 0)
FROM ts_stat(%s) GROUP BY 3 HAVING sum(ndoc) FILTER (WHERE word !~ '^[ab]') > 1
"""
