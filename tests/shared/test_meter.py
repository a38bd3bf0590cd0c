"""The cost of calls is counted, limited by daily caps across processes, and shown."""

import datetime
import json
import multiprocessing
from collections.abc import Generator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg_pool import ConnectionPool

from api.retrieval.rerankers import ClaudeReranker
from api.retrieval.reranking import FAILURES, Reranking
from shared import db, prices
from shared.db import Connection
from shared.errors import PermanentError, SettingsError, TransientError
from shared.models import Passage
from shared.prices import PRICES, Price
from shared.providers import claude as provider
from shared.providers import meter as usage
from shared.providers import remote
from shared.providers.claude import Claude, Deadline, reservation
from shared.providers.meter import BudgetError, Meter, Tokens
from shared.providers.openai import OpenAIEmbedder
from shared.providers.remote import Endpoint
from shared.providers.rerank import VoyageReranker
from shared.providers.voyage import VoyageEmbedder
from shared.text.tokens import estimate_tokens
from tests.conftest import hang_guard, until
from tests.standins import spending
from tests.standins.providers import AnthropicStandin, OpenAIStandin, VoyageStandin, text_block, write_contexts
from tests.standins.spending import CAP, PROCESSES, THREADS, WORDS
from tests.worker.test_contexts import document
from worker.indexing.contexts import AT_ONCE, ContextWriter

KEY = "key-of-the-tests"
MODEL = "claude-haiku-5-5"
QUESTION = "Where is the oar, and whose?"


@pytest.fixture
def pool(database_url: str) -> Iterator[ConnectionPool[Connection]]:
    with db.pool(database_url, 8) as pool:
        yield pool


def rows(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT purpose, model, calls, input_tokens, output_tokens, cache_write_tokens, cache_read_tokens, dollars "
        "FROM usage ORDER BY purpose, model"
    ).fetchall()


def embedding_budget(connection: Connection) -> dict[str, float | None]:
    return usage.today(connection, {"embedding": 1.0})["embedding"]


# --- reservations and bills ------------------------------------------------------------------------------------------


def test_sums_by_day_model_and_purpose(pool: ConnectionPool[Connection], connection: Connection) -> None:
    meter = Meter(pool)
    for purpose, model, tokens in (
        ("documents", "voyage-4", Tokens(1_000_000)),
        ("documents", "voyage-4", Tokens(500_000)),
        ("questions", "voyage-4", Tokens(10)),
        ("answers", "claude-sonnet-5-5", Tokens(1000, 200, 400, 3000)),
        ("documents", "nomic-embed-text", Tokens(7)),
    ):
        with meter.call(purpose, model, tokens, 9) as call:  # type: ignore[arg-type]
            call.billed(tokens)
    with meter.call("answers", "claude-sonnet-5-5", Tokens(9), 9):
        pass  # refused: not billed
    assert rows(connection) == [
        ("answers", "claude-sonnet-5-5", 1, 1000, 200, 400, 3000, Decimal("0.0056")),
        ("documents", "nomic-embed-text", 1, 7, 0, 0, 0, None),
        ("documents", "voyage-4", 2, 1_500_000, 0, 0, 0, Decimal("0.09")),
        ("questions", "voyage-4", 1, 10, 0, 0, 0, Decimal("0.0000006")),
    ]
    assert usage.today(connection, {"answers": 2.0}) == {
        "embedding": {"spent": 0.0900006, "reserved": 0.0, "cap": None},
        "answers": {"spent": 0.0056, "reserved": 0.0, "cap": 2.0},
    }
    connection.execute("UPDATE usage SET day = day - 5 WHERE purpose = 'questions'")
    assert [row["purpose"] for row in usage.by_day(connection, 5)] == ["answers", "documents", "documents"]
    last = usage.by_day(connection, 6)[-1]
    assert last["day"] == str(datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(5))
    assert last["dollars"] == pytest.approx(6e-7)


def test_a_call_that_may_exceed_the_cap_is_refused(pool: ConnectionPool[Connection], connection: Connection) -> None:
    meter = Meter(pool, {"embedding": 0.10})
    most = Tokens(1_000_000)  # of voyage-4: $0.06
    with meter.call("documents", "voyage-4", most, 9) as call:
        assert embedding_budget(connection) == {"spent": 0.0, "reserved": 0.06, "cap": 1.0}
        with (
            pytest.raises(
                BudgetError, match=r"have reserved the rest of ASKFOLDER_BUDGET_EMBEDDING \(\$0\.1 a day\)"
            ) as caught,
            meter.call("questions", "voyage-4", most, 9),
        ):
            pytest.fail("beyond the cap")
        assert caught.value.retry_after == usage.BUSY_SECONDS
        call.billed(Tokens(800_000))
    assert embedding_budget(connection) == {"spent": 0.048, "reserved": 0.0, "cap": 1.0}
    with (
        pytest.raises(
            BudgetError, match=r"used up \(\$0\.0480 of \$0\.1\)\. Calls continue at 00:00 UTC, in .* min, or"
        ) as caught,
        meter.call("documents", "voyage-4", most, 9),
    ):
        pytest.fail("beyond the cap")
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= usage.LONGEST_WAIT
    with meter.call("documents", "voyage-4", Tokens(800_000), 9) as call:  # a call within the cap is allowed
        call.billed(Tokens(800_000))
    with (
        pytest.raises(BudgetError, match=r"One call may cost up to \$0\.1200, more than"),
        meter.call("documents", "voyage-4", Tokens(2_000_000), 9),
    ):
        pytest.fail("beyond the cap")
    with meter.call("answers", "claude-opus-5-5", most, 9), meter.call("documents", "my-model", most, 9):
        pass  # another budget, and a model without a known price
    with Meter(pool, {"embedding": 0.20}).call("documents", "voyage-4", most, 9):
        pass  # a raised cap
    connection.execute("UPDATE budget SET day = day - 1")
    with meter.call("documents", "voyage-4", most, 9):
        pass  # another day


def test_a_cap_of_zero_refuses_every_call(pool: ConnectionPool[Connection]) -> None:
    with pytest.raises(BudgetError), Meter(pool, {"answers": 0.0}).call("answers", "claude-haiku-5-5", Tokens(1), 9):
        pytest.fail("beyond the cap")


def test_the_reservation_of_a_dead_process_is_released(
    pool: ConnectionPool[Connection], connection: Connection
) -> None:
    meter, most = Meter(pool, {"embedding": 0.10}), Tokens(1_000_000)
    meter.reserve("documents", "voyage-4", most, seconds=9)
    with pytest.raises(BudgetError), meter.call("documents", "voyage-4", most, 9):
        pytest.fail("it may live")
    connection.execute("UPDATE reservation SET expires_at = now() - interval '1 second'")
    assert embedding_budget(connection)["reserved"] == 0
    with meter.call("documents", "voyage-4", most, 9) as call:
        connection.execute("UPDATE reservation SET expires_at = now() - interval '1 second'")
        usage.expire(connection)
        call.billed(most)  # late, but billed
    assert embedding_budget(connection) == {"spent": 0.06, "reserved": 0.0, "cap": 1.0}
    assert connection.execute("SELECT reserved FROM budget").fetchall() == [(0,)]


def test_usage_that_could_not_be_written_is_written_later(
    pool: ConnectionPool[Connection], connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter(pool)
    connection.execute("ALTER TABLE usage RENAME TO away")
    with meter.call("documents", "voyage-4", Tokens(1), 9) as call:
        call.billed(Tokens(1))  # a failed write does not fail the answer …
    connection.execute("ALTER TABLE away RENAME TO usage")
    real = usage.settle

    def lost(*_: Any) -> None:
        raise psycopg.OperationalError("the database is away")

    monkeypatch.setattr(usage, "settle", lost)
    with meter.call("documents", "voyage-4", Tokens(2), 9) as call:
        call.billed(Tokens(2))  # … and neither does an unavailable database
    assert not meter.write()
    monkeypatch.setattr(usage, "settle", real)
    with meter.call("documents", "voyage-4", Tokens(3), 9) as call:
        call.billed(Tokens(3))
    assert [(row[2], row[3]) for row in rows(connection)] == [(2, 5)]


def test_a_call_ends_before_its_usage_is_written(
    pool: ConnectionPool[Connection], connection: Connection, database_url: str
) -> None:
    meter = Meter(pool, behind=True)
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE askfolder.usage")
        with hang_guard(60):  # the lock is released only after the calls
            for _ in range(20):
                with meter.call("questions", "voyage-4", Tokens(5), 9) as call:
                    call.billed(Tokens(5))
        assert other.execute("SELECT count(*) FROM askfolder.usage").fetchone() == (0,)
        other.rollback()
    until(lambda: [row[2:4] for row in rows(connection)] == [(20, 100)], 5)


# --- reports of providers


def test_every_billed_embedding_is_counted(pool: ConnectionPool[Connection], connection: Connection) -> None:
    with OpenAIStandin() as openai, VoyageStandin() as voyage:
        first = OpenAIEmbedder(openai.endpoint(KEY), meter=Meter(pool), sleep=lambda _: None)
        second = VoyageEmbedder(voyage.endpoint(KEY), meter=Meter(pool), sleep=lambda _: None)
        for standin in (openai, voyage):
            standin.misbehave("429")
            standin.misbehave("500")
            standin.misbehave("zero")  # an invalid answer is billed too
        first.embed(["one two three"])
        second.embed(["one two three"])
        second.embed_question("one two")
        voyage.misbehave("400")
        with pytest.raises(PermanentError):
            second.embed(["one two three"])
        voyage.misbehave("cut")  # the usage is unknown, so the estimate counts: five tokens
        second.embed(["one two three"])
        nowhere = VoyageEmbedder(
            Endpoint("Voyage", KEY, "http://127.0.0.1:9/v1", ""), meter=Meter(pool), sleep=lambda _: None
        )
        with pytest.raises(TransientError):
            nowhere.embed(["one two three"])
        for embedder in (first, second, nowhere):
            embedder.close()
    assert [row[:4] for row in rows(connection)] == [
        ("documents", "text-embedding-3-small", 2, 6),
        ("documents", "voyage-4", 4, 3 + 3 + 5 + 3),
        ("questions", "voyage-4", 1, 2),
    ]


def test_tokens_are_estimated_if_a_server_reports_none() -> None:
    assert remote.total_tokens(response({"data": []}), 7) == 7
    assert remote.total_tokens(response({"usage": {"total_tokens": None}}), 7) == 7
    assert remote.total_tokens(response({"usage": {"total_tokens": 3}}), 7) == 3
    assert remote.total_tokens(response([1]), 7) == 7


def response(body: object) -> Any:
    return httpx2.Response(200, json=body)


@pytest.fixture
def anthropic() -> Iterator[AnthropicStandin]:
    with AnthropicStandin(reply=lambda _: [text_block("It lies behind the boathouse, and it is Anna's.")]) as standin:
        yield standin


def complete(claude: Claude, seconds: float = 5) -> Tokens:
    """Ask one question and return its tokens."""
    return claude.complete("answers", MODEL, "Be brief.", QUESTION, 100, seconds).tokens


def test_each_attempt_of_claude_is_billed(
    pool: ConnectionPool[Connection],
    connection: Connection,
    anthropic: AnthropicStandin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(provider, "PAUSE", 0.01)
    claude = Claude(KEY, anthropic.url, Meter(pool))

    def billed() -> tuple[int, Tokens]:
        ((_, _, calls, *tokens, _),) = rows(connection)
        connection.execute("TRUNCATE usage")
        return calls, Tokens(*tokens)

    took = complete(claude)
    assert took.input > 0
    assert took.output > 0
    assert billed() == (1, took)
    anthropic.misbehave("529", times=2)  # not billed
    complete(claude)
    assert billed() == (1, took)
    anthropic.misbehave("cut_stream")  # the text before the error is billed by an estimate
    twice = complete(claude)
    assert billed() == (2, twice)
    assert twice.input == 2 * took.input
    assert took.output + 1 < twice.output <= 2 * took.output
    assert claude.meter.spent("answers") == took + took + twice
    anthropic.misbehave("hang", seconds=3)
    with pytest.raises(TransientError):
        complete(claude, seconds=0.3)
    most = reservation({"system": "Be brief.", "messages": [{"content": QUESTION}], "max_tokens": 100})
    assert billed() == (1, Tokens(most.input)), "the server may have read it"


def test_an_abandoned_stream_is_billed(
    pool: ConnectionPool[Connection], connection: Connection, anthropic: AnthropicStandin
) -> None:
    claude = Claude(KEY, anthropic.url, Meter(pool))
    request = {"system": "", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 100}
    events: Generator[Any] = claude.stream("answers", MODEL, request, iter, Deadline.after(5))
    while next(events).type != "text":
        pass
    events.close()
    ((_, _, calls, tokens, *_),) = rows(connection)
    assert (calls, tokens > 0) == (1, True)
    assert claude.meter.spent("answers").input == tokens


def test_the_reservation_of_a_request() -> None:
    """Estimates are upper bounds. Marked texts count as written to the cache. With tools the complete body counts."""
    texts = ["one two", "three", "Where is it?"]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    result = {"type": "search_result", "source": "a.md", "title": "A", "content": [{"type": "text", "text": texts[0]}]}
    question = {"type": "text", "text": texts[2]}
    request = {"model": "m", "system": system, "max_tokens": 9, "messages": [{"content": [result, question]}]}
    assert reservation(request) == Tokens(estimate_tokens("Be brief.a.mdAone twoWhere is it?"), 9)
    cached = {"type": "text", "text": texts[1], "cache_control": {"type": "ephemeral"}}
    request["messages"] = [{"content": [cached, question]}]
    assert reservation(request) == Tokens(estimate_tokens("Be brief.Where is it?"), 9, estimate_tokens(texts[1]))
    request["tools"] = [{"name": "search"}]
    body = json.dumps({name: value for name, value in request.items() if name != "model"})
    assert reservation(request) == Tokens(estimate_tokens(body), 9)


def test_a_repeated_request_is_reserved_again(
    pool: ConnectionPool[Connection],
    connection: Connection,
    anthropic: AnthropicStandin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A truncated answer spends the rest of the budget, so its repetition is not sent."""
    monkeypatch.setattr(provider, "PAUSE", 0.01)
    anthropic.usage_times = 100
    anthropic.misbehave("cut_stream")
    claude = Claude(KEY, anthropic.url, Meter(pool, {"answers": 0.00012}))
    with pytest.raises(BudgetError, match="used up"):
        complete(claude)
    assert len(anthropic.requests) == 1
    today = usage.today(connection, {})["answers"]
    assert today["reserved"] == 0
    assert today["spent"] == pytest.approx(float(rows(connection)[0][7]))
    assert rows(connection)[0][2] == 1


def test_reranking_is_counted_and_capped(
    pool: ConnectionPool[Connection], connection: Connection, anthropic: AnthropicStandin
) -> None:
    anthropic.reply = lambda _: [text_block("[2, 1]")]
    question, texts, broke = "an oar", ["one two", "three"], Meter(pool, {"answers": 0.0})
    with VoyageStandin() as voyage:
        for meter in (Meter(pool), broke):
            first = VoyageReranker(voyage.endpoint(KEY), "rerank-2.5", 3, meter)
            second = ClaudeReranker(Claude(KEY, anthropic.url, meter), MODEL, 3)
            for reranker in (first, second):
                if meter is broke:
                    with pytest.raises(BudgetError):
                        reranker.rerank(question, texts)
                else:
                    reranker.rerank(question, texts)
            first.close()
        assert len(voyage.requests) == len(anthropic.requests) == 1
    found = rows(connection)
    assert [row[:3] for row in found] == [("reranking", "claude-haiku-5-5", 1), ("reranking", "rerank-2.5", 1)]
    assert found[1][3] == 2 * 2 + 3
    assert found[0][4] > 0


def test_contexts_are_counted_and_capped(pool: ConnectionPool[Connection], connection: Connection) -> None:
    parsed, chunks = document(AT_ONCE * 2 + 1)
    with AnthropicStandin(reply=write_contexts) as claude:
        writer = ContextWriter(Claude(KEY, claude.url, Meter(pool, {"embedding": 1.0})), MODEL)
        assert list(writer.write("a.txt", parsed, chunks))
        (row,) = rows(connection)
        assert row[:3] == ("context", "claude-haiku-5-5", len(claude.requests))
        assert all(tokens > 0 for tokens in row[3:7]), "what was written to the cache, and read from it, apart"
        broke = ContextWriter(Claude(KEY, claude.url, Meter(pool, {"embedding": 0.001})), MODEL)
        with pytest.raises(BudgetError):
            next(broke.write("a.txt", parsed, chunks))
        assert row[2] == len(claude.requests)


def test_an_exhausted_budget_is_no_failure_of_the_reranker(pool: ConnectionPool[Connection]) -> None:
    broke = Reranking(ClaudeReranker(Claude(KEY, "", Meter(pool, {"answers": 0.0})), MODEL, 3), "Claude")
    passage = Passage(1, 1, "oar.md", "Oar", "It is Anna's.", 0.5, None, (), 0, 13)
    for _ in range(FAILURES + 1):
        order, warnings = broke.order("an oar", [passage])
        assert order == [passage]
        assert "ASKFOLDER_BUDGET_ANSWERS" in warnings[0]


# --- load


def run_processes(database_url: str, url: str) -> list[tuple[int, int]]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=spending.spend, args=(database_url, url, results)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    found = [results.get(timeout=90) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return found


def test_many_processes_never_exceed_a_cap(database_url: str, connection: Connection) -> None:
    with VoyageStandin(delay=0.01) as standin:
        found = run_processes(database_url, standin.url)
        served = standin.requests
    paid = len(served) * WORDS * 0.12e-6
    assert standin.most_in_flight > PROCESSES
    assert all(refused for _, refused in found)
    assert 0.95 * CAP < paid <= CAP
    today = usage.today(connection, {"embedding": CAP})["embedding"]
    assert today["reserved"] == 0
    assert today["spent"] == pytest.approx(paid)
    assert sum(embedded for embedded, _ in found) == len(served) == rows(connection)[0][2]


def test_underestimated_calls_exceed_the_cap_only_by_the_calls_in_flight(
    database_url: str, connection: Connection
) -> None:
    """The stand-in reports ten times the usage; real estimates are never that far too low."""
    with VoyageStandin(delay=0.01) as standin:
        standin.usage_times = 10
        run_processes(database_url, standin.url)
    one = WORDS * 10 * 0.12e-6
    spent = usage.today(connection, {})["embedding"]["spent"]
    assert spent is not None
    assert CAP < spent <= CAP + PROCESSES * THREADS * one


# --- prices


def test_own_prices_are_used(pool: ConnectionPool[Connection], connection: Connection) -> None:
    assert prices.read(" my-model=0.5, org/other:7b = 1/5 ,") == {"my-model": Price(0.5), "org/other:7b": Price(1, 5)}
    for wrong in ("my-model", "my-model=", "=1", "m=1/2/3", "m=-1", "m=nan", "m=inf"):
        with pytest.raises(SettingsError, match=r"ASKFOLDER_PRICES: .* is not a price; write"):
            prices.read(wrong)
    meter = Meter(pool, {"embedding": 0.1}, {"my-model": Price(0.5)})
    with meter.call("documents", "my-model", Tokens(100_000), 9) as call:
        call.billed(Tokens(100_000))
    assert rows(connection)[0][7] == Decimal("0.05")
    with pytest.raises(BudgetError), meter.call("documents", "my-model", Tokens(200_000), 9):
        pytest.fail("beyond the cap")


def test_the_page_names_every_price() -> None:
    page = (Path(__file__).parents[2] / "docs/costs.md").read_text()
    for model, price in PRICES.items():
        output = f"${price.output:.2f}" if price.output else ""
        assert f"| `{model}` | ${price.input:.2f} | {output} |".replace("|  |", "| |") in page
