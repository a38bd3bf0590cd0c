"""Routes of documents and sources."""

from flask import (
    Response,
    jsonify,
    request,
)

from api.bodies import DoctorBody, ListQuery, ReconcileBody, read_body, read_query
from api.problems import problem
from api.resources import resources
from shared.ledger import doctor, documents, generations, listing, sources


def get_documents() -> Response:
    query = read_query(ListQuery, request.args.to_dict())
    with resources().pool.connection() as connection:
        rows = listing.listed(connection, query.limit, query.cursor, query.state, query.q)
        counts, load, problems = listing.counts(connection), listing.load(connection), sources.problems(connection)
        answering, building = generations.answering(connection), generations.building(connection)
    cursor = rows[-1]["id"] if len(rows) == query.limit else None
    return jsonify(
        documents=[_document(row) for row in rows],
        next_cursor=cursor,
        counts=counts,
        load=load,
        problems=problems,
        index=answering,
        building=building,
    )


def get_document(document_id: int) -> Response:
    with resources().pool.connection() as connection:
        row = listing.one(connection, document_id)
    if row is None:
        return problem(404, "No such document", f"There is no document {document_id}.")
    return jsonify(_document(row))


def _document(row: dict[str, object]) -> dict[str, object]:
    dates = {name: row[name].isoformat() if row[name] else None for name in ("updated_at", "dated")}  # type: ignore[attr-defined]
    return {**row, **dates}


def post_retry(document_id: int | None = None) -> Response:
    with resources().pool.connection() as connection:
        count = documents.retry(connection, document_id)
    if document_id is not None and not count:
        return problem(409, "Nothing to retry", f"The document {document_id} has not failed.")
    return jsonify(queued=count)


def get_sources() -> Response:
    with resources().pool.connection() as connection:
        return jsonify(sources=[_source(row) for row in sources.listed(connection)])


def _source(row: dict[str, object]) -> dict[str, object]:
    return {**row, "scanned_at": row["scanned_at"].isoformat() if row["scanned_at"] else None}  # type: ignore[attr-defined]


def post_reconcile() -> Response:
    """Asks for a full scan; `asked_at`: GET /sources shows a later `scanned_at` when it is through."""
    body = read_body(ReconcileBody)
    with resources().pool.connection() as connection:
        ids = sources.ask_scan(connection, body.confirm, body.rehash)
        row = connection.execute("SELECT now()").fetchone()
    if not ids:
        return problem(409, "No producer", "No producer serves a source now, so nothing can be scanned: is it running?")
    assert row is not None
    return jsonify(sources=ids, asked_at=row[0].isoformat())


def post_doctor() -> Response:
    body = read_body(DoctorBody)
    with resources().pool.connection() as connection:
        findings = doctor.examine(connection)
        queued = doctor.repair(connection, findings) if body.repair else 0
    return jsonify(ok=not findings, findings=findings, queued=queued)
