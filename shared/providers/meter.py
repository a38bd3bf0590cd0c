"""Usage of paid models: counted by day, purpose and model, and kept within the caps of a day (UTC).

A call is reserved before it is made, with the most that it may cost, and settled after it with its real cost.
"""

import contextlib
import datetime
import operator
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
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
    "documents": "embedding",
    "questions": "embedding",  # embedding of questions
    "context": "embedding",  # contexts of chunks
    "answers": "answers",
    "reranking": "answers",
    "rewriting": "answers",  # of follow-up questions
    "checking": "answers",  # a small model's second opinion
    "judging": "answers",  # of answers that are measured (askfolder eval --judge)
}
SETTING: dict[Budget, str] = {"embedding": "ASKFOLDER_BUDGET_EMBEDDING", "answers": "ASKFOLDER_BUDGET_ANSWERS"}
BUSY_SECONDS = 5.0  # until calls in flight have given back the rest of their reservations
MARGIN_SECONDS = 30.0  # beyond a call's time limit: after that its process has died
LONGEST_WAIT = 3600.0  # after that a document tries again: the cap may have been raised


USAGE_NAMES = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class BudgetError(TransientError):
    """The day's cap does not allow the call now. `retry_after`: seconds until a retry may succeed."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one call or several. `input`: those that were neither written to a cache nor read from one."""

    input: int = 0
    output: int = 0
    cache_write: int = 0
    cache_read: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(*map(operator.sub, astuple(self), astuple(other)))

    @property
    def total(self) -> int:
        return sum(astuple(self))

    @classmethod
    def of(cls, usage: Any) -> "Tokens":
        """Read the `usage` of a message of Anthropic's, or counts by Anthropic's names."""
        counts = usage if isinstance(usage, Mapping) else vars(usage)
        return cls(*(counts.get(name) or 0 for name in USAGE_NAMES))

    def by_name(self) -> dict[str, int]:
        """The counts by Anthropic's names."""
        return dict(zip(USAGE_NAMES, astuple(self), strict=True))


NOTHING = Tokens()


@dataclass(frozen=True, slots=True)
class Spending:
    """Calls to be recorded, and their reservation. `dollars`: None if no price is known."""

    purpose: Purpose
    model: str
    calls: int
    tokens: Tokens
    dollars: float | None
    reservation: UUID | None = None


# --- statements


def reserve(connection: Connection, budget: Budget, dollars: float, cap: float, seconds: float) -> UUID | None:
    """Reserve dollars of today's cap. Return None if less is left. The reservation expires after `seconds`.

    One statement locks the row of the day, so that any number of processes stay within the cap. It does not wait for
    the disk: `settle` also counts a call whose reservation was lost in a crash of PostgreSQL.
    """
    row = connection.execute(
        """
        WITH taken AS (
            INSERT INTO budget (name, day, reserved)
            SELECT %(name)s, (now() AT TIME ZONE 'utc')::date, %(dollars)s::numeric
            WHERE %(dollars)s::numeric <= %(cap)s::numeric
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
    """Give back the reservations of processes that died. Return their number."""
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
    """Record the cost of calls, and give back the rest of their reservation."""
    connection.execute(
        """
        WITH mine AS (
            DELETE FROM reservation WHERE id = %(reservation)s RETURNING day, dollars
        ), today AS (
            SELECT coalesce((SELECT day FROM mine), (now() AT TIME ZONE 'utc')::date) AS day
        ), counted AS (
            INSERT INTO usage (day, purpose, model, calls, input_tokens, output_tokens,
                               cache_write_tokens, cache_read_tokens, dollars)
            SELECT day, %(purpose)s, %(model)s, %(calls)s, %(input)s, %(output)s,
                   %(cache_write)s, %(cache_read)s, %(dollars)s::numeric
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
        {"budget": BUDGETS[spending.purpose], **asdict(spending), **asdict(spending.tokens)},
    )


def by_day(connection: Connection, days: int) -> list[dict[str, Any]]:
    """Rows of the last days, today's first. `dollars`: None if the price of a call was unknown."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            """
            SELECT day::text, purpose, model, calls, input_tokens, output_tokens,
                   cache_write_tokens, cache_read_tokens, dollars::float8
            FROM usage WHERE day > (now() AT TIME ZONE 'utc')::date - %s::integer ORDER BY day DESC, purpose, model
            """,
            [days],
        ).fetchall()


def today(connection: Connection, caps: Mapping[Budget, float | None]) -> dict[Budget, dict[str, float | None]]:
    """Dollars by budget: spent today, reserved by calls under way, and the cap (None: no cap)."""
    rows = connection.execute(
        """
        SELECT name, spent::float8, (SELECT coalesce(sum(dollars), 0)::float8 FROM reservation r
                                     WHERE (r.name, r.day) = (b.name, b.day) AND expires_at > now())
        FROM budget b WHERE day = (now() AT TIME ZONE 'utc')::date
        """
    ).fetchall()
    sums = {name: (spent, reserved) for name, spent, reserved in rows}
    budgets: dict[Budget, dict[str, float | None]] = {}
    for name in SETTING:
        spent, reserved = sums.get(name, (0.0, 0.0))
        budgets[name] = {"spent": spent, "reserved": reserved, "cap": caps.get(name)}
    return budgets


# --- calls


class Call:
    """A running call with its retries. `took`: the tokens of all of them."""

    def __init__(self, meter: "Meter", purpose: Purpose, model: str, most: Tokens, seconds: float) -> None:
        """The parameters are those of `Meter.call`."""
        self.most, self.took = most, NOTHING
        self.calls, self.tokens = 0, NOTHING  # since the last settlement
        self._meter, self._purpose, self._model, self._seconds = meter, purpose, model, seconds
        self._reservation: UUID | None = None

    def begin(self) -> None:
        """Reserve the most that the call may cost. BudgetError: the cap does not allow it."""
        self._reservation = self._meter.reserve(self._purpose, self._model, self.most, self._seconds)

    def end(self) -> None:
        """Settle what was billed since the call began."""
        if self.calls or self._reservation:
            self._meter.settle(self._purpose, self._model, self.calls, self.tokens, self._reservation)
        self.calls, self.tokens, self._reservation = 0, NOTHING, None

    def renew(self) -> None:
        """Settle, and reserve a repetition of the call. BudgetError: the cap does not allow the repetition."""
        self.end()
        self.begin()

    def billed(self, tokens: Tokens) -> None:
        """Count one request that was, or may have been, paid for, even if it failed. Call it for each repetition."""
        self.calls += 1
        self.tokens += tokens
        self.took += tokens


class Meter:
    """Counts paid calls, and refuses those that the day's cap does not allow. Threads share it.

        with meter.call("answers", model, Tokens(input=…, output=…), seconds=90) as call:
            …
            call.billed(Tokens(…))

    The spending is written when the block ends, also by an exception. If the database is away, the next call writes it.
    """

    def __init__(
        self,
        pool: ConnectionPool[Connection] | None = None,
        caps: Mapping[Budget, float | None] | None = None,
        own_prices: Mapping[str, Price] | None = None,
        behind: bool = False,
        redis_url: str = "",
    ) -> None:
        """`pool`: None to count nothing. `caps`: dollars a day. `behind`: write in a background thread.

        `redis_url`: where processes share the pace of their calls (shared/providers/pace.py); empty: they do not.
        """
        self.pool, self.redis_url = pool, redis_url
        self._caps = dict(caps or {})
        self._prices = {**prices.PRICES, **(own_prices or {})}
        self._by_thread = behind
        self._behind = Writer("usage", self._write)
        self._spent: dict[Purpose, Tokens] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: Settings, pool: ConnectionPool[Connection], behind: bool = False) -> "Meter":
        return cls(pool, caps(settings), prices.read(settings.prices), behind, settings.redis_url)

    @contextlib.contextmanager
    def call(self, purpose: Purpose, model: str, most: Tokens, seconds: float) -> Iterator[Call]:
        """Reserve and settle one call. BudgetError: the cap does not allow it.

        `most`: an upper estimate of its tokens. `seconds`: its time limit; a reservation that is older counts as lost.
        """
        call = Call(self, purpose, model, most, seconds)
        call.begin()
        try:
            yield call
        finally:
            call.end()

    def reserve(self, purpose: Purpose, model: str, most: Tokens, seconds: float) -> UUID | None:
        """Return None if no reservation is needed. BudgetError: the cap does not allow it."""
        budget, dollars = BUDGETS[purpose], self._cost(model, most)
        cap = self._caps.get(budget)
        if self.pool is None or cap is None or dollars is None:
            return None
        self.write()  # the latest spending of this process counts
        with self.pool.connection() as connection:
            for _ in range(2):
                if reservation := reserve(connection, budget, dollars, cap, seconds + MARGIN_SECONDS):
                    return reservation
                if not expire(connection):
                    break
            raise _refusal(budget, dollars, cap, today(connection, {})[budget]["spent"] or 0.0)

    def spent(self, purpose: Purpose) -> Tokens:
        """Tokens that this object has counted for a purpose, those of failed calls included."""
        return self._spent.get(purpose, NOTHING)

    def settle(self, purpose: Purpose, model: str, calls: int, tokens: Tokens, reservation: UUID | None) -> None:
        with self._lock:
            self._spent[purpose] = self.spent(purpose) + tokens
        spending = Spending(purpose, model, calls, tokens, self._cost(model, tokens), reservation)
        self._behind.add(spending, start=self._by_thread and self.pool is not None)
        if not self._by_thread:
            self.write()

    def _cost(self, model: str, tokens: Tokens) -> float | None:
        return prices.cost(model, **asdict(tokens), known=self._prices)

    def write(self) -> bool:
        """Write pending spending, as far as the database allows. Return True if nothing is left."""
        return self._behind.write()

    def _write(self, pending: list[Spending]) -> list[Spending]:
        if self.pool is None:
            return []
        try:
            with self.pool.connection() as connection:
                while pending:
                    settle(connection, pending[0])
                    del pending[0]
        except (psycopg.OperationalError, PoolTimeout) as error:
            log.warning(f"Database unavailable, spending is written later: {error}", action="usage.not_written")
        except psycopg.Error as error:  # an answer that was paid for must not be lost with it
            log.error(f"Spending could not be written and is lost: {error}", action="usage.lost")
            del pending[0]
        return pending


UNMETERED = Meter()


def caps(settings: Settings) -> dict[Budget, float | None]:
    """Dollars a day by budget. None: no cap."""
    return {"embedding": settings.budget_embedding, "answers": settings.budget_answers}


def _refusal(budget: Budget, dollars: float, cap: float, spent: float) -> BudgetError:
    """Explain why a call is not allowed, and when it may be."""
    name = SETTING[budget]
    if dollars > cap:
        return BudgetError(
            f"One call may cost up to ${dollars:.4f}, more than {name} allows a day (${cap:g}): raise the cap.",
            LONGEST_WAIT,
        )
    if spent + dollars <= cap:
        return BudgetError(
            f"Running calls have reserved the rest of {name} (${cap:g} a day); try again in {BUSY_SECONDS:.0f} s.",
            BUSY_SECONDS,
        )
    now = datetime.datetime.now(datetime.UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + datetime.timedelta(days=1)
    left = (midnight - now).total_seconds()
    return BudgetError(
        f"Today's {name} is used up (${spent:.4f} of ${cap:g}). "
        f"Calls continue at 00:00 UTC, in {_span(left)}, or when the cap is raised.",
        min(left, LONGEST_WAIT),
    )


def _span(seconds: float) -> str:
    hours, minutes = divmod(int(seconds // 60) + 1, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
