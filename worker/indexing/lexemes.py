"""The text search configuration of a document, and lexeme statistics: the number of chunks that hold each lexeme.

Lexemes are counted in the background when enough has changed. A question counts the lexemes that the statistics lack by
itself (api/retrieval/lexemes.py).
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
LEAST = 1_000  # chunks: every question counts fewer by itself, exactly
SHARE = 0.1  # of the chunks must have changed before they are counted again
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
    """Counts due generations in a thread with its own connection, one thread at a time."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.thread: threading.Thread | None = None

    def start(self, connection: Connection) -> None:
        """Start counting what is due, unless a thread is counting already."""
        if self.thread and self.thread.is_alive():
            return
        if due := [generation for generation in generations.active(connection) if is_due(connection, generation)]:
            self.thread = threading.Thread(target=self._run, args=[due], daemon=True, name="lexemes")
            self.thread.start()

    def _run(self, due: list[Generation]) -> None:
        try:
            with db.connect(self.url) as connection:
                for generation in due:
                    count(connection, generation)
        except (psycopg.Error, TransientError) as error:  # still due at the next sweep
            log.warning(f"Lexemes could not be counted: {error}", action="lexemes.not_counted")


def is_due(connection: Connection, generation: Generation) -> bool:
    """True if so many chunks changed since the last count that they should be counted again."""
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
    """Count the lexemes of a generation's chunks. The previous counts stay in use until the transaction commits."""
    with connection.transaction():
        lock = connection.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", [LOCK, generation.id]).fetchone()
        if lock != (True,):  # another producer is counting
            return
        row = connection.execute(
            "SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables WHERE relid = to_regclass(%s)",
            [f"askfolder.lexical_{generation.id}"],
        ).fetchone()
        connection.execute("DELETE FROM lexeme_stats WHERE generation_id = %s", [generation.id])
        per_collection = sql.SQL("SELECT collection_id, count(*) FROM {} GROUP BY 1").format(generation.lexical)
        collections = connection.execute(per_collection).fetchall()
        for collection_id, chunks in collections:
            query = sql.SQL("SELECT bm25_terms(bm25) FROM {} WHERE collection_id = {}")
            terms = query.format(generation.lexical, sql.Literal(collection_id)).as_string(connection)
            connection.execute(
                """
                INSERT INTO lexeme_stats (generation_id, collection_id, place, chunks, strong, stronger)
                SELECT %(generation)s, %(collection)s, 0, %(chunks)s, 0, 0
                UNION ALL
                SELECT %(generation)s, %(collection)s, ltrim(word, 'ab')::integer AS place,
                       sum(ndoc) FILTER (WHERE word !~ '^[ab]'),
                       coalesce(sum(ndoc) FILTER (WHERE word LIKE 'a%%'), 0),
                       coalesce(sum(ndoc) FILTER (WHERE word LIKE 'b%%'), 0)
                FROM ts_stat(%(terms)s) GROUP BY place HAVING sum(ndoc) FILTER (WHERE word !~ '^[ab]') > 1
                """,
                {"generation": generation.id, "collection": collection_id, "chunks": chunks, "terms": terms},
            )
        connection.execute(
            "UPDATE generation SET counted_changes = %s WHERE id = %s", [row[0] if row else 0, generation.id]
        )
    total = sum(chunks for _, chunks in collections)
    log.info(f"Counted the lexemes of {total:,} chunks", action="lexemes.counted", generation=generation.id)
