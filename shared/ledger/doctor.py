"""What must hold of the whole index, checked by SQL in one snapshot, and mended where that is safe.

Whether the index holds what the sources hold is the scan's part (`askfolder reconcile`).
"""

from dataclasses import dataclass

from psycopg import sql

from shared.db import Connection
from shared.ledger import documents, generations

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be. `documents`: ids of all that it concerns."""

    check: str
    sentence: str
    documents: tuple[int, ...]


# Each gives the ids of the documents that break it.
_CHECKS = {
    "text": (
        "{n} documents are ready, but their text is not stored",
        """
        SELECT d.id FROM document d LEFT JOIN document_text t ON t.document_id = d.id AND t.text_version = d.text_version
        WHERE d.state = 'ready' AND t.document_id IS NULL
        """,
    ),
    "revision": (
        "{n} documents are ready, but the live index holds another text of them, or none",
        """
        SELECT d.id FROM document d JOIN generation g ON g.state = 'live'
        LEFT JOIN document_generation h ON h.document_id = d.id AND h.generation_id = g.id
        WHERE d.state = 'ready' AND h.text_version IS DISTINCT FROM d.text_version
        """,
    ),
    "empty": (
        "{n} documents are ready, but nothing of them can be found",
        """
        SELECT d.id FROM document d JOIN generation g ON g.state = 'live'
        WHERE d.state = 'ready' AND NOT EXISTS (SELECT 1 FROM chunk c WHERE c.document_id = d.id AND c.generation_id = g.id)
        """,
    ),
    "order": (
        "{n} documents have chunks that are missing or twice there",
        """
        SELECT DISTINCT document_id FROM (
            SELECT document_id FROM chunk GROUP BY generation_id, document_id
            HAVING min(ordinal) <> 0 OR max(ordinal) <> count(*) - 1 OR count(DISTINCT ordinal) <> count(*)
        ) AS uneven
        """,
    ),
    "unowned": (
        "{n} documents have chunks that no index accounts for",
        """
        SELECT DISTINCT c.document_id FROM chunk c WHERE NOT EXISTS (
            SELECT 1 FROM document_generation h WHERE h.document_id = c.document_id AND h.generation_id = c.generation_id)
        """,
    ),
    "places": (
        "{n} documents have chunks that do not stand in their text where they say",
        """
        SELECT DISTINCT c.document_id FROM chunk c
        JOIN document_text t ON t.document_id = c.document_id
        JOIN document_generation h ON h.document_id = c.document_id AND h.generation_id = c.generation_id AND h.text_version = t.text_version
        WHERE substr(t.content, c.char_start + 1, c.char_end - c.char_start) <> c.content
        """,
    ),
    "count": (
        "{n} documents have another number of chunks than they say",
        """
        SELECT d.id FROM document d JOIN generation g ON g.state = 'live'
        WHERE d.state = 'ready'
          AND d.chunks <> (SELECT count(*) FROM chunk c WHERE c.document_id = d.id AND c.generation_id = g.id)
        """,
    ),
    "stuck": (
        "{n} documents are stuck: their worker is gone, or their task was lost, and nobody put them back",
        """
        SELECT id FROM document
        WHERE leased_until < now() - interval '2 minutes' OR (lease IS NOT NULL AND state NOT IN ('ingesting', 'ready'))
           OR (state = 'ingesting' AND lease IS NULL)
           OR (state IN ('queued', 'ready') AND leased_until IS NULL AND published_at < now() - interval '2 minutes')
        """,
    ),
}

_ROWS = """
SELECT DISTINCT c.document_id FROM chunk c
WHERE c.generation_id = %s AND (NOT EXISTS (SELECT 1 FROM {vectors} v WHERE v.chunk_id = c.id)
                                OR NOT EXISTS (SELECT 1 FROM {lexical} l WHERE l.chunk_id = c.id))
"""


def examine(connection: Connection) -> list[Finding]:
    """All checks over the whole database, in one snapshot."""
    found = []
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for name, (sentence, query) in _CHECKS.items():
            ids = tuple(row[0] for row in connection.execute(query))
            if ids:
                found.append(Finding(name, _said(sentence, ids), ids))
        for generation in generations.stored(connection):
            rows = sql.SQL(_ROWS).format(vectors=generation.vectors, lexical=generation.lexical)
            ids = tuple(row[0] for row in connection.execute(rows, [generation.id]))
            if ids:
                sentence = f"{{n}} documents have chunks without a vector or without words in index {generation.id}"
                found.append(Finding("rows", _said(sentence, ids), ids))
    return found


def _said(sentence: str, ids: tuple[int, ...]) -> str:
    some = ", ".join(map(str, ids[:EXAMPLES])) + (", …" if len(ids) > EXAMPLES else "")
    return f"{sentence.format(n=len(ids))} ({'document' if len(ids) == 1 else 'documents'} {some})."


def repair(connection: Connection, findings: list[Finding]) -> int:
    """Mends what can be mended without a loss. Returns how many documents are read again.

    What is stuck goes back; a wrong count is counted; all else is made again from the file, while what is there goes on answering.
    """
    ids = {number for finding in findings for number in finding.documents if finding.check not in ("stuck", "count")}
    with connection.transaction():
        for finding in findings:
            if finding.check == "stuck":
                connection.execute(
                    """
                    UPDATE document SET state = CASE state WHEN 'ingesting' THEN 'queued' ELSE state END, lease = NULL, leased_until = NULL,
                        worker = NULL, published_at = NULL, not_before = NULL, stage = NULL, updated_at = now()
                    WHERE id = ANY(%s)
                    """,
                    [list(finding.documents)],
                )
            if finding.check == "count":
                connection.execute(
                    "UPDATE document d SET chunks = (SELECT count(*) FROM chunk c JOIN generation g ON g.id = c.generation_id "
                    "WHERE c.document_id = d.id AND g.state = 'live') WHERE id = ANY(%s)",
                    [list(finding.documents)],
                )
        return documents.rebuild(connection, ids)
