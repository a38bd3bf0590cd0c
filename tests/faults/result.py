"""The result of a campaign: figures, each with its condition and the outcome of the condition."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.faults.checks import KINDS, Damage
from tests.faults.reader import Reader


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure. `must`: its condition, in words; empty if it has none."""

    what: str
    value: str
    must: str = ""
    holds: bool = True


@dataclass
class Result:
    name: str
    figures: list[Figure] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    numbers: dict[str, int] = field(default_factory=dict)  # the sizes of the campaign

    @property
    def ok(self) -> bool:
        return bool(self.figures) and all(figure.holds for figure in self.figures)

    def say(self, sentence: str) -> None:
        """Print progress."""
        print(f"  {self.name} {time.monotonic() - self.began:6.0f} s  {sentence}", flush=True)

    def tell(self, what: str, value: object) -> None:
        self.figures.append(Figure(what, _plain(value)))

    def must(self, what: str, value: object, must: str, holds: bool) -> None:
        self.figures.append(Figure(what, _plain(value), must, holds))

    def at_most(self, what: str, value: float | None, limit: float, unit: str = "") -> None:
        """Require `value` to be at most `limit`. None means that the event did not happen, and fails."""
        shown = "never" if value is None else f"{_plain(value)}{unit}"
        self.must(what, shown, f"≤ {_plain(limit)}{unit}", value is not None and value <= limit)

    def equal(self, what: str, value: object, wanted: object) -> None:
        self.must(what, value, _plain(wanted), value == wanted)

    def settled(self, seconds: float | None, limit: float = 120) -> None:
        self.at_most("settled after the last fault", seconds, limit, " s")

    def damage(self, damage: Damage, kinds: Sequence[str] = tuple(KINDS)) -> None:
        """Require every kind of damage to be zero."""
        self.tell("documents, chunks, searches checked", f"{damage.documents}, {damage.chunks}, {damage.searched}")
        for kind in kinds:
            self.equal(kind, damage.counts[kind], 0)
        if damage:
            self.remarks.append(damage.summary())

    def reader(self, reader: Reader) -> None:
        """Require that the reader saw no fault."""
        self.tell("answers read meanwhile (and errors in outages)", f"{reader.answers} ({reader.errors})")
        self.equal("answers that mix two revisions", len(reader.mixed), 0)
        self.equal("ready documents without a chunk", len(reader.empty), 0)
        self.equal("errors outside of outages", len(reader.broken), 0)
        for examples in (reader.mixed, reader.empty, reader.broken):
            self.remarks += [", ".join(examples[:3])] if examples else []

    def finish(self) -> "Result":
        self.seconds = time.monotonic() - self.began
        self.say("holds" if self.ok else "DOES NOT HOLD: " + "; ".join(f.what for f in self.figures if not f.holds))
        return self


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if value < 100 and value != int(value) else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
