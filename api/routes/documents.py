"""Routes of documents and sources."""

from flask import Blueprint, Response, jsonify, request

from api.bodies import DoctorBody, ListQuery, ReconcileBody, read_body, read_query
from api.problems import problem
from api.resources import resources
from shared.ledger import doctor, documents, generations, listing, sources

bp = Blueprint("documents", __name__)


@bp.get("/documents")
def get_documents() -> Response:
    query = read_query(ListQuery, request.args.to_dict())
    with resources().pool.connection() as connection:
        rows = listing.listed(connection, query.limit, query.cursor, query.state, query.q)
        return jsonify(
            documents=rows,
            next_cursor=rows[-1]["id"] if len(rows) == query.limit else None,
            counts=listing.counts(connection),
            load=listing.load(connection),
            problems=sources.problems(connection),
            index=generations.answering(connection),
            building=generations.building(connection),
        )


@bp.get("/documents/<int:document_id>")
def get_document(document_id: int) -> Response:
    with resources().pool.connection() as connection:
        row = listing.one(connection, document_id)
    if row is None:
        return problem(404, "No such document", f"There is no document {document_id}.")
    return jsonify(row)


@bp.post("/documents/retry")
@bp.post("/documents/<int:document_id>/retry")
def post_retry(document_id: int | None = None) -> Response:
    with resources().pool.connection() as connection:
        count = documents.retry(connection, document_id)
    if document_id is not None and not count:
        return problem(409, "Nothing to retry", f"The document {document_id} has not failed.")
    return jsonify(queued=count)


@bp.get("/sources")
def get_sources() -> Response:
    with resources().pool.connection() as connection:
        return jsonify(sources=sources.listed(connection))


@bp.post("/reconcile")
def post_reconcile() -> Response:
    """Ask for a full scan. It is done when GET /sources shows a `scanned_at` later than `asked_at`."""
    body = read_body(ReconcileBody)
    with resources().pool.connection() as connection:
        ids = sources.ask_scan(connection, body.confirm, body.rehash)
        (now,) = connection.execute("SELECT now()").fetchall()[0]
    if not ids:
        return problem(409, "No producer", "No producer is running, so no folder can be scanned: start askfolder.")
    return jsonify(sources=ids, asked_at=now)


@bp.post("/doctor")
def post_doctor() -> Response:
    body = read_body(DoctorBody)
    with resources().pool.connection() as connection:
        findings = doctor.examine(connection)
        queued = doctor.repair(connection, findings) if body.repair else 0
    return jsonify(ok=not findings, findings=findings, queued=queued)
