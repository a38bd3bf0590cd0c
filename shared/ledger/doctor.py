"""Check the consistency of the whole index in one snapshot, and repair what can be repaired without losing data.

The scan checks that the index holds what the sources hold (`askfolder reconcile`).
"""

from dataclasses import dataclass

from psycopg import sql

from shared.db import Connection
from shared.ledger import documents, generations

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """A check that failed. `documents`: ids of all documents concerned."""

    check: str
    sentence: str
    documents: tuple[int, ...]


# Check → what is wrong (after "3 documents"), and a query for the ids of the documents concerned.
_CHECKS = {
    "text": (
        "are ready, but their text is not stored",
        """
        SELECT d.id FROM document d
        LEFT JOIN document_text t ON t.document_id = d.id AND t.text_version = d.text_version WHERE d.state = 'ready' AND t.document_id IS NULL
        """,
    ),
    "revision": (
        "are ready, but the live index holds another version of their text, or none",
        """
        SELECT d.id FROM document d JOIN generation g ON g.state = 'live'
        LEFT JOIN document_generation h ON h.document_id = d.id AND h.generation_id = g.id
        WHERE d.state = 'ready' AND h.text_version IS DISTINCT FROM d.text_version
        """,
    ),
    "empty": (
        "are ready, but have no chunks in the live index",
        """
        SELECT d.id FROM document d JOIN generation g ON g.state = 'live'
        WHERE d.state = 'ready'
          AND NOT EXISTS (SELECT 1 FROM chunk c WHERE c.document_id = d.id AND c.generation_id = g.id)
        """,
    ),
    "order": (
        "have missing or duplicate chunks",
        """
        SELECT DISTINCT document_id FROM (
            SELECT document_id FROM chunk GROUP BY generation_id, document_id
            HAVING min(ordinal) <> 0 OR max(ordinal) <> count(*) - 1 OR count(DISTINCT ordinal) <> count(*)
        ) AS uneven
        """,
    ),
    "unowned": (
        "have chunks that belong to no index",
        """
        SELECT DISTINCT c.document_id FROM chunk c WHERE NOT EXISTS (
            SELECT 1 FROM document_generation h WHERE h.document_id = c.document_id AND h.generation_id = c.generation_id)
        """,
    ),
    "places": (
        "have chunks whose content differs from the text at their position",
        """
        SELECT DISTINCT c.document_id FROM chunk c
        JOIN document_text t ON t.document_id = c.document_id
        JOIN document_generation h
          ON h.document_id = c.document_id AND h.generation_id = c.generation_id AND h.text_version = t.text_version
        WHERE substr(t.content, c.char_start + 1, c.char_end - c.char_start) <> c.content
        """,
    ),
    "count": (
        "have a wrong chunk count",
        """
        SELECT d.id FROM document d JOIN generation g ON g.state = 'live'
        WHERE d.state = 'ready'
          AND d.chunks <> (SELECT count(*) FROM chunk c WHERE c.document_id = d.id AND c.generation_id = g.id)
        """,
    ),
    "stuck": (
        "are stuck: their worker or their task was lost, and they were not queued again",
        """
        SELECT d.id FROM document d LEFT JOIN task t ON t.document_id = d.id
        WHERE coalesce(t.leased_until, t.published_at) < now() - interval '2 minutes'
           OR (t.lease IS NULL AND d.state = 'ingesting')
           OR (t.lease IS NOT NULL AND d.state NOT IN ('ingesting', 'ready'))
        """,
    ),
}

_ROWS = sql.SQL("""
    SELECT DISTINCT c.document_id FROM chunk c
    WHERE c.generation_id = %s AND (NOT EXISTS (SELECT 1 FROM {vectors} v WHERE v.chunk_id = c.id)
                                    OR NOT EXISTS (SELECT 1 FROM {lexical} l WHERE l.chunk_id = c.id))
""")


def examine(connection: Connection) -> list[Finding]:
    """Run all checks over the whole database, in one snapshot."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        found = [(name, problem, connection.execute(query).fetchall()) for name, (problem, query) in _CHECKS.items()]
        for generation in generations.stored(connection):
            query = _ROWS.format(vectors=generation.vectors, lexical=generation.lexical)
            problem = f"have chunks without a vector or without lexemes in index {generation.id}"
            found.append(("rows", problem, connection.execute(query, [generation.id]).fetchall()))
    return [_finding(name, problem, tuple(number for (number,) in rows)) for name, problem, rows in found if rows]


def _finding(check: str, problem: str, ids: tuple[int, ...]) -> Finding:
    noun = "document" if len(ids) == 1 else "documents"
    examples = ", ".join(map(str, ids[:EXAMPLES])) + (", …" if len(ids) > EXAMPLES else "")
    return Finding(check, f"{len(ids)} documents {problem} ({noun} {examples}).", ids)


def repair(connection: Connection, findings: list[Finding]) -> int:
    """Repair what can be repaired without losing data. Return how many documents are read again.

    Stuck documents are queued again, wrong counts are corrected. All others are read again; their live text answers until
    then.
    """
    ids = {number for finding in findings for number in finding.documents if finding.check not in ("stuck", "count")}
    with connection.transaction():
        for finding in findings:
            if finding.check == "stuck":
                documents.put_back(connection, list(finding.documents))
            if finding.check == "count":
                connection.execute(
                    "UPDATE document d SET chunks = (SELECT count(*) FROM chunk c JOIN generation g "
                    "ON g.id = c.generation_id WHERE c.document_id = d.id AND g.state = 'live') WHERE id = ANY(%s)",
                    [list(finding.documents)],
                )
        return documents.rebuild(connection, ids)
