"""Check the consistency of the whole index in one snapshot, and repair what can be repaired without losing data.

The scan checks that the index holds what the sources hold (`askfolder reconcile`).
"""

import re
from dataclasses import dataclass
from pathlib import Path

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


# Check → what is wrong (after "3 documents"), and the query for the ids of the documents concerned.
CHECKS = {
    check: (problem, query)
    for check, problem, query in re.findall(
        r"^-- (\w+): (.+)\n([^;]+)", Path(__file__).with_name("checks.sql").read_text(), re.MULTILINE
    )
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
        found = [(name, problem, connection.execute(query).fetchall()) for name, (problem, query) in CHECKS.items()]
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

    Stuck documents are queued again, counts are corrected. All others are read again; their live text still answers.
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
