"""Question log: written in the background, read and rated later."""

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool, PoolTimeout

from shared.background import Writer
from shared.db import Connection
from shared.log import log
from shared.models import Answer, SearchResult

MOST_PENDING = 1000  # beyond it questions are not logged, so that memory does not fill


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answer. `model`: None if no model was asked."""

    answer: Answer
    found: SearchResult
    collection: str | None = None
    model: str | None = None
    id: UUID = field(default_factory=uuid4)
    asked_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class QuestionLog:
    """Writes questions in the background, so that no answer waits for the log or fails with it. Threads share it."""

    def __init__(self, pool: ConnectionPool[Connection], on: bool = True) -> None:
        self._pool, self._on = pool, on
        self._writer = Writer("question", self._write)

    def add(self, asked: Asked) -> str | None:
        """Log a complete answer. Return the id for its rating; None if the log is off or full."""
        if not self._on or len(self._writer) >= MOST_PENDING:
            return None
        self._writer.add(asked)
        return str(asked.id)

    def write(self) -> None:
        """Write everything pending before this returns."""
        self._writer.write()

    def _write(self, pending: list[Asked]) -> list[Asked]:
        """Questions that cannot be written are lost."""
        try:
            with self._pool.connection() as connection:
                for asked in pending:
                    # a passage's document may be deleted by now, and then the log must not keep its words
                    with contextlib.suppress(psycopg.errors.ForeignKeyViolation):
                        insert(connection, asked)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning(f"A question was not logged: {error}", action="question.not_logged")
        return []


def insert(connection: Connection, asked: Asked) -> None:
    """Insert one question. Raises ForeignKeyViolation if a passage's document no longer exists."""
    answer, found = asked.answer, asked.found
    names = (asked.id, asked.asked_at, asked.collection, found.question)
    answered = (answer.text, answer.verdict, answer.answerer, asked.model)
    places = [(False, n, p.document_id, p.char_start, p.char_end, None) for n, p in enumerate(found.passages, 1)]
    cited = [
        (True, c.number, c.document_id, c.char_start, c.char_end, sha256(c.quote.encode()).digest())
        for c in answer.citations
    ]
    with connection.transaction():
        connection.execute(
            """
            INSERT INTO question (id, asked_at, collection, question, answer, verdict, answerer, model, timings, usage)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            [*names, *answered, Jsonb(dict(found.timings)), Jsonb(answer.usage)],
        )
        connection.cursor().executemany(
            """
            INSERT INTO question_place (question_id, cited, ordinal, document_id, char_start, char_end, quote_sha256)
            VALUES (%s, %s, %s, %s, %s, %s, %s)
            """,
            [(asked.id, *place) for place in [*places, *cited]],
        )


def rate(connection: Connection, question_id: UUID, rating: int) -> bool:
    """rating: 1, −1, or 0 to remove it. False if there is no such question."""
    return bool(
        connection.execute(
            """
            UPDATE question SET rating = nullif(%(rating)s, 0), rated_at = CASE WHEN %(rating)s <> 0 THEN now() END
            WHERE id = %(id)s
            """,
            {"id": question_id, "rating": rating},
        ).rowcount
    )


def listed(
    connection: Connection, limit: int, rating: int | None = None, cursor: int | None = None
) -> list[dict[str, Any]]:
    """The newest questions before the number `cursor`. `rating`: 1, −1, or 0 for questions without a rating.

    `stands`: true if a citation's words are still in the document, at that place. An answer that cites a deleted or
    excluded document is not listed.
    """
    with connection.cursor(row_factory=dict_row) as rows:
        return rows.execute(
            """
            SELECT q.number, q.id::text, q.asked_at, q.collection, q.question, q.answer, q.verdict, q.answerer, q.model,
                   q.usage, q.timings, q.rating, q.rated_at, (
                       SELECT coalesce(json_agg(json_build_object(
                           'document_id', p.document_id, 'source', d.key,
                           'char_start', p.char_start, 'char_end', p.char_end) ORDER BY p.ordinal), '[]')
                       FROM question_place p JOIN document d ON d.id = p.document_id
                       WHERE p.question_id = q.id AND NOT p.cited
                   ) AS passages, (
                       SELECT coalesce(json_agg(json_build_object(
                           'document_id', p.document_id, 'source', d.key,
                           'char_start', p.char_start, 'char_end', p.char_end,
                           'stands', coalesce(p.quote_sha256 = sha256(convert_to(
                               substr(t.content, p.char_start + 1, p.char_end - p.char_start), 'UTF8')), false)
                       ) ORDER BY p.ordinal), '[]')
                       FROM question_place p JOIN document d ON d.id = p.document_id
                       LEFT JOIN document_text t ON t.document_id = d.id
                       WHERE p.question_id = q.id AND p.cited
                   ) AS citations
            FROM question q
            WHERE (%(cursor)s::bigint IS NULL OR q.number < %(cursor)s)
              AND (%(rating)s::int IS NULL OR coalesce(q.rating, 0) = %(rating)s)
              AND NOT EXISTS (
                  SELECT 1 FROM question_place p JOIN document d ON d.id = p.document_id
                  WHERE p.question_id = q.id AND p.cited AND d.state IN ('deleted', 'excluded'))
            ORDER BY q.number DESC LIMIT %(limit)s
            """,
            {"limit": limit, "rating": rating, "cursor": cursor},
        ).fetchall()


def forget(connection: Connection) -> int:
    """Delete the log, ratings included. The number of questions."""
    return connection.execute("DELETE FROM question").rowcount
