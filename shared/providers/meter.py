"""What models elsewhere cost: counted by day, purpose and model, and kept within the caps of a day (UTC).

A call is reserved before it is made, with the most that it may cost, and settled after it with what it took: see `Meter`.
"""

import contextlib
import datetime
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from shared import prices
from shared.background import Writer
from shared.db import Connection
from shared.errors import TransientError
from shared.log import log
from shared.prices import Price
from shared.settings import Settings

Budget = Literal["embedding", "answers"]
Purpose = Literal["documents", "questions", "context", "answers", "reranking", "rewriting", "checking", "judging"]
BUDGETS: dict[Purpose, Budget] = {
    "documents": "embedding",  # embedding of documents …
    "questions": "embedding",  # … and of questions
    "context": "embedding",  # what is written about chunks while documents are ingested
    "answers": "answers",
    "reranking": "answers",
    "rewriting": "answers",
    "checking": "answers",  # a small model's second opinion
    "judging": "answers",  # of answers that are measured (askfolder eval --judge)
}
SETTING: dict[Budget, str] = {"embedding": "ASKFOLDER_BUDGET_EMBEDDING", "answers": "ASKFOLDER_BUDGET_ANSWERS"}
BUSY_SECONDS = 5.0  # until calls that are under way have left what they did not take
MARGIN_SECONDS = 30.0  # beyond what a call may last: then its process has died
LONGEST_WAIT = 3600.0  # a document looks again after so long: the cap may have been raised


class BudgetError(TransientError):
    """The cap of the day allows no such call now. `retry_after`: seconds until it is worth another try."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of one call or several; `input`: those that were neither written to a cache nor read from one."""

    input: int = 0
    output: int = 0
    cache_write: int = 0
    cache_read: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.input + other.input,
            self.output + other.output,
            self.cache_write + other.cache_write,
            self.cache_read + other.cache_read,
        )

    @classmethod
    def of(cls, usage: Any) -> "Tokens":
        """From the `usage` of a message of Anthropic's, or its counts by their names."""
        counts = usage if isinstance(usage, Mapping) else vars(usage)
        names = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        return cls(*(counts.get(name) or 0 for name in names))


NOTHING = Tokens()


@dataclass(frozen=True, slots=True)
class Spending:
    """Calls to be written down, and the reservation that they were made under. dollars: None: no price is known."""

    purpose: Purpose
    model: str
    calls: int
    tokens: Tokens
    dollars: float | None
    reservation: UUID | None = None


# --- what is written -------------------------------------------------------------------------------------------------


def reserve(connection: Connection, budget: Budget, dollars: float, cap: float, seconds: float) -> UUID | None:
    """Takes dollars out of what today's cap leaves; None when that is less. After so many seconds it counts as lost.

    One statement: the row of the day is locked and compared as it is then, however many processes ask. It does not wait for
    the disk: what a crash of PostgreSQL takes from it, `settle` counts all the same.
    """
    row = connection.execute(
        """
        WITH taken AS (
            INSERT INTO budget (name, day, reserved)
            SELECT %(name)s, (now() AT TIME ZONE 'utc')::date, %(dollars)s::numeric WHERE %(dollars)s::numeric <= %(cap)s::numeric
            ON CONFLICT (name, day) DO UPDATE SET reserved = budget.reserved + excluded.reserved
            WHERE budget.spent + budget.reserved + excluded.reserved <= %(cap)s::numeric
            RETURNING name, day
        )
        INSERT INTO reservation (name, day, dollars, expires_at)
        SELECT name, day, %(dollars)s::numeric, now() + make_interval(secs => %(seconds)s) FROM taken
        RETURNING id, set_config('synchronous_commit', 'off', true)
        """,
        {"name": budget, "dollars": dollars, "cap": cap, "seconds": seconds},
    ).fetchone()
    return row[0] if row else None


def expire(connection: Connection) -> int:
    """Gives back what processes reserved that died. Returns how many reservations."""
    row = connection.execute(
        """
        WITH lost AS (
            DELETE FROM reservation
            WHERE id IN (SELECT id FROM reservation WHERE expires_at < now() FOR UPDATE SKIP LOCKED)
            RETURNING name, day, dollars
        ), given_back AS (
            UPDATE budget SET reserved = greatest(reserved - l.dollars, 0)
            FROM (SELECT name, day, sum(dollars) AS dollars FROM lost GROUP BY name, day) AS l
            WHERE (budget.name, budget.day) = (l.name, l.day)
        )
        SELECT count(*) FROM lost
        """
    ).fetchone()
    assert row is not None
    return int(row[0])


def settle(connection: Connection, spending: Spending) -> None:
    """Writes down what calls took, and gives back the rest of what was reserved for them."""
    connection.execute(
        """
        WITH mine AS (
            DELETE FROM reservation WHERE id = %(reservation)s RETURNING day, dollars
        ), today AS (
            SELECT coalesce((SELECT day FROM mine), (now() AT TIME ZONE 'utc')::date) AS day
        ), counted AS (
            INSERT INTO usage (day, purpose, model, calls, input_tokens, output_tokens, cache_write_tokens, cache_read_tokens, dollars)
            SELECT day, %(purpose)s, %(model)s, %(calls)s, %(input)s, %(output)s, %(cache_write)s, %(cache_read)s, %(dollars)s::numeric
            FROM today WHERE %(calls)s > 0
            ON CONFLICT (day, purpose, model) DO UPDATE SET
                calls = usage.calls + excluded.calls,
                input_tokens = usage.input_tokens + excluded.input_tokens,
                output_tokens = usage.output_tokens + excluded.output_tokens,
                cache_write_tokens = usage.cache_write_tokens + excluded.cache_write_tokens,
                cache_read_tokens = usage.cache_read_tokens + excluded.cache_read_tokens,
                dollars = usage.dollars + excluded.dollars
        )
        INSERT INTO budget (name, day, spent) SELECT %(budget)s, day, coalesce(%(dollars)s::numeric, 0) FROM today
        ON CONFLICT (name, day) DO UPDATE SET
            spent = budget.spent + excluded.spent,
            reserved = greatest(budget.reserved - coalesce((SELECT dollars FROM mine), 0), 0)
        """,
        {
            "budget": BUDGETS[spending.purpose],
            "purpose": spending.purpose,
            "model": spending.model,
            "calls": spending.calls,
            "input": spending.tokens.input,
            "output": spending.tokens.output,
            "cache_write": spending.tokens.cache_write,
            "cache_read": spending.tokens.cache_read,
            "dollars": spending.dollars,
            "reservation": spending.reservation,
        },
    )


# --- what is read ----------------------------------------------------------------------------------------------------


def by_day(connection: Connection, days: int) -> list[dict[str, Any]]:
    """The rows of the last so many days, today's first. dollars: None where a call had no known price."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            """
            SELECT day::text, purpose, model, calls, input_tokens, output_tokens, cache_write_tokens, cache_read_tokens, dollars::float8
            FROM usage WHERE day > (now() AT TIME ZONE 'utc')::date - %s::integer ORDER BY day DESC, purpose, model
            """,
            [days],
        ).fetchall()
    return rows


def today(connection: Connection, caps: Mapping[Budget, float | None]) -> dict[Budget, dict[str, float | None]]:
    """Dollars by budget: spent today, reserved by calls under way, and the cap; None: there is none."""
    rows = connection.execute(
        """
        SELECT name, spent::float8, (SELECT coalesce(sum(dollars), 0)::float8 FROM reservation r
                                     WHERE (r.name, r.day) = (b.name, b.day) AND expires_at > now())
        FROM budget b WHERE day = (now() AT TIME ZONE 'utc')::date
        """
    ).fetchall()
    found = {name: (spent, reserved) for name, spent, reserved in rows}
    names: tuple[Budget, ...] = ("embedding", "answers")
    sums = {name: found.get(name, (0.0, 0.0)) for name in names}
    return {name: {"spent": sums[name][0], "reserved": sums[name][1], "cap": caps.get(name)} for name in names}


# --- what callers use ------------------------------------------------------------------------------------------------


class Call:
    """One call, with its repetitions, while it is made. Of no meter, it counts for itself."""

    def __init__(
        self,
        meter: "Meter | None" = None,
        purpose: Purpose = "answers",
        model: str = "",
        most: Tokens = NOTHING,
        seconds: float = 0.0,
    ) -> None:
        """As `Meter.call`."""
        self.calls, self.tokens = 0, NOTHING
        self.took = NOTHING  # in all, that was settled already included
        self._meter, self._purpose, self._model, self._most, self._seconds = meter, purpose, model, most, seconds
        self._reservation: UUID | None = None

    @property
    def redis_url(self) -> str:
        """As the meter's."""
        return self._meter.redis_url if self._meter is not None else ""

    def begin(self) -> None:
        """BudgetError: the cap does not allow it."""
        if self._meter is not None:
            self._reservation = self._meter.reserve(self._purpose, self._model, self._most, self._seconds)

    def end(self) -> None:
        """Has written down what was billed since it began."""
        if self._meter is not None and (self.calls or self._reservation):
            self._meter.settle(self._purpose, self._model, self.calls, self.tokens, self._reservation)
        self.calls, self.tokens, self._reservation = 0, NOTHING, None

    def billed(self, tokens: Tokens) -> None:
        """What one request took that was, or may have been, paid for; also one that failed then. Again for each repetition."""
        self.calls += 1
        self.tokens += tokens
        self.took += tokens

    def watched(self, events: Iterator[Any]) -> Generator[Any]:
        """The events of a stream of Anthropic's, as they come. What it took is billed when it ends, breaks off or is left.

        Where it broke off, what was written is estimated: three letters a token. One that never spoke until a deadline
        (TimeoutError) may have been read: its input counts as it was estimated. A repetition of what was billed is reserved
        anew. BudgetError: the cap does not allow that.
        """
        if self.calls and self._meter is not None:
            self.end()
            self.begin()
        tokens: Tokens | None = None
        written, told = 0, False
        try:
            for event in events:
                kind = getattr(event, "type", None)  # None: nothing for a while
                if kind == "message_start":
                    tokens = Tokens.of(event.message.usage)
                elif kind == "content_block_delta":
                    written += len(getattr(event.delta, "text", None) or getattr(event.delta, "thinking", None) or "")
                elif kind == "message_delta" and tokens is not None:
                    tokens, told = replace(tokens, output=event.usage.output_tokens or 0), True
                yield event
        except TimeoutError:
            tokens = tokens or Tokens(self._most.input)
            raise
        finally:
            if tokens is not None:
                self.billed(tokens if told else replace(tokens, output=max(tokens.output, written // 3)))
            if isinstance(events, Generator):
                events.close()  # ends the call, when this one is left


class Meter:
    """Counts calls that leave this machine, and refuses those that the day's cap does not allow. Threads share it.

        with meter.call("answers", model, Tokens(input=…, output=…), seconds=90) as call:
            …
            call.billed(Tokens(…))

    What is spent is written when the block ends, whatever ends it; when the database is away then, with the next one.
    """

    def __init__(
        self,
        pool: ConnectionPool[Connection] | None = None,
        caps: Mapping[Budget, float | None] | None = None,
        own_prices: Mapping[str, Price] | None = None,
        behind: bool = False,
        redis_url: str = "",
    ) -> None:
        """`pool`: None: nothing is counted. `caps`: dollars a day. `behind`: written by a thread, where someone waits.

        `redis_url`: where those that make the calls share how fast they may (shared/providers/pace.py); empty: they do not.
        """
        self.redis_url = redis_url
        self._pool = pool
        self._caps = dict(caps or {})
        self._prices = {**prices.PRICES, **(own_prices or {})}
        self._by_thread = behind
        self._behind = Writer("usage", self._write)

    @classmethod
    def of(cls, settings: Settings, pool: ConnectionPool[Connection], behind: bool = False) -> "Meter":
        return cls(pool, caps(settings), prices.read(settings.prices), behind, settings.redis_url)

    @contextlib.contextmanager
    def call(self, purpose: Purpose, model: str, most: Tokens, seconds: float) -> Iterator[Call]:
        """`most`: what it may take at most, as far as that is known. `seconds`: that it may last; then its process counts as dead.

        BudgetError: the cap does not allow it.
        """
        call = Call(self, purpose, model, most, seconds)
        call.begin()
        try:
            yield call
        finally:
            call.end()

    def reserve(self, purpose: Purpose, model: str, most: Tokens, seconds: float) -> UUID | None:
        """None: nothing needs to be. BudgetError: the cap does not allow it."""
        budget, dollars = BUDGETS[purpose], self._cost(model, most)
        cap = self._caps.get(budget)
        if self._pool is None or cap is None or dollars is None:
            return None
        self.write()  # what this process spent a moment ago counts
        with self._pool.connection() as connection:
            for _ in range(2):
                if reservation := reserve(connection, budget, dollars, cap, seconds + MARGIN_SECONDS):
                    return reservation
                if not expire(connection):
                    break
            raise _refusal(budget, dollars, cap, today(connection, {})[budget]["spent"] or 0.0)

    def settle(self, purpose: Purpose, model: str, calls: int, tokens: Tokens, reservation: UUID | None) -> None:
        spending = Spending(purpose, model, calls, tokens, self._cost(model, tokens), reservation)
        self._behind.add(spending, start=self._by_thread and self._pool is not None)
        if not self._by_thread:
            self.write()

    def _cost(self, model: str, tokens: Tokens) -> float | None:
        return prices.cost(
            model, tokens.input, tokens.output, tokens.cache_write, tokens.cache_read, known=self._prices
        )

    def write(self) -> bool:
        """Writes down what is not yet, as far as the database lets it. Returns whether nothing is left."""
        return self._behind.write()

    def _write(self, pending: list[Spending]) -> list[Spending]:
        if self._pool is None:
            return []
        try:
            with self._pool.connection() as connection:
                while pending:
                    settle(connection, pending[0])
                    del pending[0]
        except (psycopg.OperationalError, PoolTimeout) as error:
            log.warning(f"What was spent is written later: {error}", action="usage.not_written")
        except psycopg.Error as error:  # it must cost nobody the answer that was paid for
            log.error(f"What was spent could not be written: {error}", action="usage.lost")
            del pending[0]
        return pending


UNMETERED = Meter()


def caps(settings: Settings) -> dict[Budget, float | None]:
    """Dollars a day, by budget; None: as much as it takes."""
    return {"embedding": settings.budget_embedding, "answers": settings.budget_answers}


def _refusal(budget: Budget, dollars: float, cap: float, spent: float) -> BudgetError:
    """Why a call is not allowed, and when it may be."""
    name = SETTING[budget]
    if dollars > cap:
        return BudgetError(
            f"One call may cost up to ${dollars:.4f}, more than {name} allows a day (${cap:g}): raise it.",
            LONGEST_WAIT,
        )
    if spent + dollars <= cap:
        return BudgetError(
            f"Calls under way have reserved what {name} (${cap:g} a day) leaves; try again in {BUSY_SECONDS:.0f} s.",
            BUSY_SECONDS,
        )
    now = datetime.datetime.now(datetime.UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + datetime.timedelta(days=1)
    left = (midnight - now).total_seconds()
    return BudgetError(
        f"Today's {name} is used up (${spent:.4f} of ${cap:g}); it goes on at 00:00 UTC, in {_span(left)}, or when it is raised.",
        min(left, LONGEST_WAIT),
    )


def _span(seconds: float) -> str:
    hours, minutes = divmod(int(seconds // 60) + 1, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
