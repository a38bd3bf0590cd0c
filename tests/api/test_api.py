"""Access control and bad input of the API: keys, hosts, origins, error sentences."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr

from api.app import create_app
from shared.db import Connection
from shared.ledger import generations
from shared.settings import Settings
from shared.system.servers import Servers
from tests.conftest import KEY

AUTH = {"Authorization": f"Bearer {KEY}", "Host": "127.0.0.1:8000"}


@pytest.fixture
def client(database_url: str, servers: Servers, tmp_path: Path, model: Path) -> Iterator[FlaskClient]:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / model.name).symlink_to(model)
    settings = Settings(  # type: ignore[call-arg]
        _env_file=None,
        database_url=database_url,
        redis_url=servers.redis_url,
        data=tmp_path,
        inbox=tmp_path,
        admin_key=SecretStr(KEY),
    )
    app = create_app(settings)
    yield app.test_client()
    app.extensions["askfolder"].pool.close()


def test_every_route_needs_the_key(client: FlaskClient) -> None:
    routes = [rule for rule in client.application.url_map.iter_rules() if rule.rule not in ("/healthz", "/readyz")]
    assert len(routes) >= 8
    for rule in routes:
        path = rule.rule.replace("<int:document_id>", "1").replace("<path:filename>", "ask.css")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Cookie": "askfolder_key=wrong"},
                {"Authorization": "Basic x"},
            ):
                response = client.open(path, method=method, headers={"Host": "localhost", **headers})
                assert response.status_code == 401, (method, path, headers)
                assert client.open(path, method=method, headers={**AUTH, "Host": "evil.example"}).status_code == 400
                assert (
                    client.open(path, method=method, headers={**AUTH, "Origin": "http://evil.example"}).status_code
                    == 403
                )
                assert client.open(path, method=method, headers={**AUTH, "Origin": "null"}).status_code == 403


def test_health_is_open(client: FlaskClient, connection: Connection) -> None:
    assert client.get("/healthz", headers={"Host": "localhost"}).status_code == 200
    response = client.get("/readyz", headers={"Host": "localhost"})
    assert response.status_code == 503
    assert response.json is not None
    assert set(response.json["missing"]) == {"index"}


def test_a_link_with_the_key_opens_the_page(client: FlaskClient) -> None:
    response = client.get(f"/?key={KEY}", headers={"Host": "localhost"})
    assert (response.status_code, response.headers["Location"]) == (303, "/")
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    page = client.get("/", headers={"Host": "localhost"})
    assert page.status_code == 200
    assert KEY not in page.text
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert client.get("/?key=wrong", headers={"Host": "localhost"}).status_code == 401


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/ask", b"", 400, "not valid JSON"),
        ("/ask", b"{", 400, "not valid JSON"),
        ("/ask", b"[]", 422, "body"),
        ("/ask", b"{}", 422, "question"),
        ("/ask", b'{"question": 7}', 422, "question"),
        ("/ask", b'{"question": "  "}', 422, "question"),
        ("/ask", b'{"question": "a", "top_k": 0}', 422, "top_k"),
        ("/ask", b'{"question": "a", "tok_p": 3}', 422, "tok_p"),
        ("/search", b'{"query": ""}', 422, "query"),
        (
            "/search",
            b'{"query": "a", "filters": {"metadata": ' + b'{"a":' * 40_000 + b"1" + b"}" * 40_000 + b"}}",
            400,
            "not valid JSON",
        ),
        ("/search", b'{"query": "a", "filters": {"metadata": {"a": NaN}}}', 422, "NaN"),
        ("/search", b'{"query": "a", "filters": {"metadata": {"a": 1e999}}}', 422, "NaN"),
        ("/search", b'{"query": "a", "filters": {"metadata": {"a": "\\ud800"}}}', 422, "lone surrogate"),
        ("/search", b'{"query": "a", "top_k": 0}', 422, "top_k"),
        ("/search", b'{"query": "a", "top_k": 10000}', 422, "top_k"),
        ("/search", b'{"query": "a", "top_k": "3"}', 422, "top_k"),
        ("/search", b'{"query": "a", "mode": "magic"}', 422, "mode"),
        ("/search", b'{"query": "' + b"a" * 30_000 + b'"}', 422, "query"),
        ("/search", b'{"query": "' + b"a" * 1_000_000 + b'"}', 413, "larger"),
    ],
)
def test_bad_input_is_answered_with_an_error_sentence(
    client: FlaskClient, path: str, body: bytes, status: int, words: str
) -> None:
    response = client.post(path, data=body, headers=AUTH, content_type="application/json")
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    assert response.json is not None
    assert words in response.json["detail"]
    assert response.json["status"] == status


def test_bad_query_parameters_are_refused(client: FlaskClient) -> None:
    for query in ("limit=0", "limit=1001", "limit=x", "state=lost", "cursor=-1", "colour=red"):
        assert client.get(f"/documents?{query}", headers=AUTH).status_code == 422, query
    assert client.get("/documents/99", headers=AUTH).status_code == 404
    assert client.get("/nowhere", headers=AUTH).status_code == 404
    assert client.put("/ask", headers=AUTH).status_code == 405


@pytest.mark.parametrize(
    "query",
    [
        "?!…",
        "'; DROP TABLE document; --",
        "a:* & | !",
        "\\ ' \" \x00",
        "日本語",
        "the",
        "word " * 3000,
        "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
    ],
)
def test_odd_questions_cause_no_error(client: FlaskClient, connection: Connection, query: str) -> None:
    generations.want(connection, "local", "all-MiniLM-L6-v2-int8", "", 384, "1/200/28", "1")
    for mode in ("hybrid", "lexical"):
        response = client.post("/search", json={"query": query, "mode": mode}, headers=AUTH)
        assert response.status_code == 200, response.text
        assert response.json is not None
        assert response.json["results"] == []
    answer = client.post("/ask", json={"question": query}, headers=AUTH).json
    assert answer is not None
    assert answer["answer"] == "I don't have information on that."
    assert answer["verdict"] == "no_answer"


def test_an_unavailable_redis_causes_no_error(
    database_url: str, tmp_path: Path, model: Path, connection: Connection
) -> None:
    generations.want(connection, "local", "all-MiniLM-L6-v2-int8", "", 384, "1/200/28", "1")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / model.name).symlink_to(model)
    settings = Settings(  # type: ignore[call-arg]
        _env_file=None,
        database_url=database_url,
        redis_url="redis://127.0.0.1:1/0",
        data=tmp_path,
        inbox=tmp_path,
        admin_key=SecretStr(KEY),
    )
    app = create_app(settings)
    client = app.test_client()
    assert client.post("/search", json={"query": "heron"}, headers=AUTH).json["results"] == []  # type: ignore[index]
    ready = client.get("/readyz", headers=AUTH)
    assert ready.status_code == 503
    assert "Redis" in ready.text
    app.extensions["askfolder"].pool.close()


def test_an_unavailable_database_is_reported_in_a_sentence(servers: Servers, tmp_path: Path) -> None:
    settings = Settings(  # type: ignore[call-arg]
        _env_file=None,
        database_url="postgresql://127.0.0.1:1/x",
        redis_url=servers.redis_url,
        data=tmp_path,
        inbox=tmp_path,
        admin_key=SecretStr(KEY),
    )
    app = create_app(settings)
    response = app.test_client().post("/search", json={"query": "heron"}, headers=AUTH)
    assert response.status_code == 503
    assert "PostgreSQL does not answer" in response.text
    app.extensions["askfolder"].pool.close(timeout=1)
    assert threading.active_count() < 50
