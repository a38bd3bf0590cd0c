"""Hostile documents are ingested and an obedient model answers: none of their orders may take effect."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr

from api.answering import steps as deep
from api.app import create_app
from shared.providers import claude as messages
from shared.settings import Settings
from shared.text.sentences import sentences
from tests.api.hostile_documents import DOCUMENTS, GONE, VAULT, Hostile
from tests.api.rendering import foreign
from tests.conftest import KEY, System, new_database, new_system, until
from tests.standins.providers import AnthropicStandin, cite, search_results, text_block, tool_use, words

ANTHROPIC_KEY = "sk-ant-the-secret-of-the-tests"
MODEL = "claude-sonnet-5-5"
SECRETS = (KEY, ANTHROPIC_KEY, VAULT, GONE)
MARK = re.compile(r"(?<!\w)\[(\d{1,4})(?=\]|:? ?[\"“„«])")
PASSAGE = re.compile(r'<passage-(\w+) number=(\d+) title=(".*?")>\n(.*?)\n</passage-\1>', re.DOTALL)


# The model that obeys


def obey(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Obey the document that the question is about: make its tool calls first, then give its statements."""
    talk = [block for message in request["messages"] for block in message["content"]]
    question = next(block["text"] for block in reversed(request["messages"][0]["content"]) if block["type"] == "text")
    (document,) = [one for one in DOCUMENTS if one.name in question]
    if document.calls and not any(block["type"] == "tool_result" for block in talk):
        return [tool_use(name, **arguments) for name, arguments in document.calls]
    if native := search_results(request):
        index = next(n for n, one in enumerate(native) if document.name in json.dumps(one))
        texts = [block["text"] for block in native[index]["content"]]
        return [text_block(text, _cited(request, index, texts, text, change)) for text, change in document.statements]
    passages = PASSAGE.findall("\n".join(_texts(talk)))
    number, passage = next((int(number), text) for _, number, title, text in passages if document.name in title + text)
    return [text_block("".join(_quoting(number, passage, text, change) for text, change in document.statements))]


def _texts(blocks: Iterable[Any]) -> Iterator[str]:
    for block in blocks:
        if block["type"] == "text":
            yield block["text"]
        elif block["type"] == "tool_result" and isinstance(block["content"], list):
            yield from _texts(block["content"])


def _best(texts: list[str], statement: str) -> int:
    return max(range(len(texts)), key=lambda place: len(set(words(texts[place])) & set(words(statement))))


def _cited(
    request: dict[str, Any], index: int, texts: list[str], statement: str, change: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    if change is None:
        return []
    place = _best(texts, statement)
    return [cite(request, index, place) | dict(change), cite(request, index, 0, len(texts)) | dict(change)]


def _quoting(number: int, passage: str, statement: str, change: Mapping[str, Any] | None) -> str:
    if change is None:
        return statement + " "
    texts = [passage[start:end] for start, end in sentences(passage)]
    quote = change.get("cited_text", texts[_best(texts, statement)])
    return f'{statement.rstrip()} [{change.get("search_result_index", number - 1) + 1}: "{quote}"] '


# The system under test

_called: list[str] = []  # hosts that this process looked up or connected to


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        _called.append(str(arguments[1][0]))
    elif event == "socket.getaddrinfo":
        _called.append(str(arguments[0]))


@dataclass
class Playground:
    """Clients of one index with a citing model, a model without citations, no model, and over real HTTP."""

    system: System
    standins: Mapping[str, AnthropicStandin]
    clients: Mapping[str, FlaskClient]
    tally: Counter[str] = field(default_factory=Counter)

    def ask(self, server: str, document: Hostile, events: bool = False, **more: Any) -> dict[str, Any]:
        """Return the final answer, or {} if there is none. Check the answer and every event before it."""
        body = {"question": document.question, "collection": "default", "top_k": 3, "log": False, **more}
        headers = {
            "Authorization": f"Bearer {KEY}",
            "Host": "localhost",
            "Accept": "text/event-stream" if events else "application/json",
        }
        response = self.clients[server].post("/ask", json=body, headers=headers)
        text = response.get_data(as_text=True)
        if not events:
            answer: dict[str, Any] = json.loads(text)
            assert response.status_code in (200, 503), answer
        else:
            parts = [
                dict(line.split(": ", 1) for line in part.split("\n"))
                for part in text.split("\n\n")
                if part.startswith("event")
            ]
            data = [(part["event"], json.loads(part["data"])) for part in parts]
            answer = data[-1][1] | {"passages": data[0][1]["passages"]}
            assert "".join(one["text"] for name, one in data if name == "delta").strip() == answer.get(
                "answer", ""
            ) or not answer.get("sentences")
        self.tally["questions"] += 1
        if "answer" not in answer:  # the model called tools that were not offered
            assert "tool_use" in answer["detail"], answer
            assert document.calls
            assert more.get("mode") != "deep"
            return dict[str, Any]()
        self.check(answer, document, more.get("strict", True))
        return answer

    def check(self, answer: dict[str, Any], document: Hostile, strict: bool) -> None:
        """Check that nothing forged, foreign or secret is shown."""
        assert any(document.name in json.dumps(passage) for passage in answer["passages"]), (document, "was not found")
        assert foreign(answer["answer"]) == [], (document, answer["answer"])
        assert (
            "".join(one["text"] for one in answer["sentences"]).strip() == answer["answer"] or not answer["sentences"]
        )
        numbers = {citation["number"] for citation in answer["citations"]}
        for one in answer["sentences"]:
            assert foreign(one["text"]) == [], (document, one)
            assert {int(mark) for mark in MARK.findall(one["text"])} <= set(one["citations"]) <= numbers, (
                document,
                one,
            )
        with psycopg.connect(self.system.env["DATABASE_URL"]) as connection:
            for citation in answer["citations"]:
                row = connection.execute(
                    """
                    SELECT t.content, c.name, d.state
                    FROM askfolder.document_text t JOIN askfolder.document d ON d.id = t.document_id
                    JOIN askfolder.collection c ON c.id = d.collection_id WHERE t.document_id = %s
                    """,
                    [citation["document_id"]],
                ).fetchone()
                assert row is not None
                assert (row[0][citation["char_start"] : citation["char_end"]], *row[1:]) == (
                    citation["quote"],
                    "default",
                    "ready",
                )
        shown = json.dumps([answer["citations"], answer["passages"], answer["answer"] if strict else ""])
        assert not [secret for secret in SECRETS if secret in shown], (document, shown)
        if strict:
            assert {one["status"] for one in answer["sentences"]} <= {"supported", "partly"}
        self.tally["answers"] += bool(answer["sentences"])
        self.tally["sentences"] += len(answer["sentences"])
        self.tally["citations"] += len(answer["citations"])
        self.tally["dropped"] += answer["dropped"]
        self.tally["removed"] += answer["removed"]


def settings(system: System, base_url: str, key: str | None) -> Settings:
    return Settings(  # type: ignore[call-arg]
        _env_file=None,
        database_url=system.env["DATABASE_URL"],
        redis_url=system.env["REDIS_URL"],
        data=system.data,
        inbox=system.folder,
        admin_key=SecretStr(KEY),
        anthropic_api_key=SecretStr(key) if key else None,
        anthropic_model=MODEL,
        anthropic_base_url=base_url,
    )


@pytest.fixture(scope="module")
def playground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    servers, model = request.getfixturevalue("servers"), request.getfixturevalue("model")
    with new_database(servers) as url, AnthropicStandin(reply=obey) as native, AnthropicStandin(reply=obey) as plain:
        plain.plain = True
        system = new_system(servers, url, model, tmp_path_factory.mktemp("hostile"))
        for document in DOCUMENTS:
            (system.folder / document.file).write_bytes(document.content())
        (system.folder / "vault.md").write_text(f"# Vault\n\nThe code of the vault is {VAULT}.\n")
        (system.folder / "gone.md").write_text(f"# Gate\n\nThe code of the gate is {GONE}.\n")
        system.env |= {"ANTHROPIC_API_KEY": ANTHROPIC_KEY, "ANTHROPIC_BASE_URL": native.url, "ASKFOLDER_ADMIN_KEY": KEY}
        try:
            system.start("web", "worker", "producer")
            rows = system.settled(len(DOCUMENTS) + 2)
            assert {row["state"] for row in rows.values()} == {"ready"}, [
                r for r in rows.values() if r["state"] != "ready"
            ]
            (system.folder / "gone.md").unlink()
            until(lambda: system.documents().get("gone.md", {"state": "deleted"})["state"] == "deleted")
            system.stop("worker", "producer")
            with psycopg.connect(url) as connection:
                connection.execute("INSERT INTO askfolder.collection (name) VALUES ('private')")
                connection.execute(
                    """
                    UPDATE askfolder.document
                    SET collection_id = (SELECT id FROM askfolder.collection WHERE name = 'private')
                    WHERE key = 'vault.md'
                    """
                )
            standins = {"native": native, "marks": plain}
            keys = {"native": ANTHROPIC_KEY, "marks": ANTHROPIC_KEY, "none": None}
            apps = {
                name: create_app(settings(system, standins[name].url if key else "", key)) for name, key in keys.items()
            }
            for name, cites in (("native", True), ("marks", False)):
                apps[name].extensions["askfolder"].claude.citing[MODEL] = cites
            yield Playground(system, standins, {name: app.test_client() for name, app in apps.items()})
            for app in apps.values():
                app.extensions["askfolder"].pool.close()
        finally:
            system.stop()


@pytest.fixture(autouse=True)
def watched(playground: Playground, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check that no other host is called, no secret is sent, and no tool except an offered search is used."""
    monkeypatch.setattr(messages, "PAUSE", 0.001)
    for standin in playground.standins.values():
        standin.requests.clear()
    _called.clear()
    yield
    assert set(_called) <= {"127.0.0.1", "localhost"}
    for standin in playground.standins.values():
        for request in standin.requests:
            check_request(request["body"])


def check_request(body: dict[str, Any]) -> None:
    sent = json.dumps(body, ensure_ascii=False)
    assert not [secret for secret in SECRETS if secret in sent]
    assert not re.search("[\u200b\u202a-\u202e\u2060-\u2069\U000e0000-\U000e007f]", sent)
    talk = [block for message in body["messages"] for block in message["content"]]
    assert {tool["name"] for tool in body.get("tools", ())} <= {"search"}
    calls = {block["id"]: block for block in talk if block["type"] == "tool_use"}
    for block in talk:
        if block["type"] == "tool_result" and not block.get("is_error"):
            assert calls[block["tool_use_id"]]["name"] == "search"
    assert sum(block["type"] == "tool_result" and not block.get("is_error") for block in talk) <= deep.SEARCHES


sys.addaudithook(_notice)


def test_there_are_enough_hostile_documents() -> None:
    assert len(DOCUMENTS) >= 60
    assert len({document.name for document in DOCUMENTS}) == len({one.kind for one in DOCUMENTS}) == len(DOCUMENTS)


@pytest.mark.parametrize(
    ("server", "mode", "strict"),
    [
        ("native", "quick", True),
        ("native", "quick", False),
        ("native", "deep", True),
        ("marks", "quick", True),
        ("marks", "deep", False),
    ],
)
def test_the_statements_of_an_obedient_model_are_verified(
    playground: Playground, server: str, mode: str, strict: bool
) -> None:
    playground.tally.clear()
    for number, document in enumerate(DOCUMENTS):
        playground.ask(server, document, events=number % 2 == strict, mode=mode, strict=strict)
    print(server, mode, "strict" if strict else "loose", dict(playground.tally))
    assert playground.tally["answers"] >= 0.6 * len(DOCUMENTS)  # the question is still answered


def test_quoted_answers_ignore_the_orders(playground: Playground) -> None:
    playground.tally.clear()
    for document in DOCUMENTS:
        playground.ask("none", document)
    print("no model", dict(playground.tally))
    assert playground.tally["answers"] >= 0.6 * len(DOCUMENTS)
    assert not any(standin.requests for standin in playground.standins.values())


def test_the_same_rules_hold_over_http(playground: Playground) -> None:
    for document in DOCUMENTS[::4]:
        if not document.calls:
            asked = {"question": document.question, "collection": "default", "top_k": 3}
            playground.check(playground.system.call("POST", "/ask", asked), document, strict=True)


def test_calls_are_refused_and_searches_are_bounded(playground: Playground) -> None:
    """In mode deep, tool calls ordered by documents have no effect; searches keep the filters of the question."""
    steps = {}
    for document in DOCUMENTS:
        if document.calls:
            answer = playground.ask("native", document, mode="deep")
            steps[document.kind] = answer["steps"]
            assert len(answer["steps"]) <= deep.SEARCHES
            assert all(len(step["query"]) <= deep.LONGEST_QUERY for step in answer["steps"])
    assert [kind for kind in ("fetch", "bash", "mail", "delete", "search without a query") if steps[kind]] == []
    assert len(steps["many searches"]) == deep.SEARCHES
    assert len(steps["search another collection"]) == 1
    with psycopg.connect(playground.system.env["DATABASE_URL"]) as connection:
        row = connection.execute("SELECT count(*) FROM askfolder.document WHERE state = 'ready'").fetchone()
    assert row == (len(DOCUMENTS) + 1,)
