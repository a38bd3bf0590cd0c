"""Prices of models in dollars per million tokens, as their makers listed them in November 2026."""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.errors import SettingsError

CACHE_WRITE, CACHE_READ = 1.25, 0.1  # of the input's price (Anthropic)


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens of input and output."""

    input: float
    output: float = 0.0


PRICES = {
    "claude-opus-5-5": Price(4.0, 20.0),
    "claude-sonnet-5-5": Price(2.0, 10.0),
    "claude-sonnet-4-6": Price(3.0, 15.0),
    "claude-haiku-5-5": Price(0.10, 0.50),  # dearer above 100,000 tokens of prompt, which askfolder never sends
    "text-embedding-3-small": Price(0.02),
    "text-embedding-3-large": Price(0.13),
    "voyage-4-large": Price(0.12),
    "voyage-4": Price(0.06),
    "voyage-4-lite": Price(0.02),
    "rerank-2.5": Price(0.05),
    "rerank-2.5-lite": Price(0.02),
}


def read(text: str) -> dict[str, Price]:
    """Read ASKFOLDER_PRICES: 'model=IN' or 'model=IN/OUT', separated by commas. SettingsError: another form."""
    found = {}
    for part in filter(None, map(str.strip, text.split(","))):
        model, _, numbers = part.rpartition("=")
        try:
            price = Price(*map(float, numbers.split("/")))
        except (ValueError, TypeError):
            price = Price(-1.0)
        if not model or not (0 <= price.input < 1e6 and 0 <= price.output < 1e6):
            raise SettingsError(
                f"ASKFOLDER_PRICES: {part!r} is not a price; "
                "write model=IN or model=IN/OUT, in dollars per million tokens."
            )
        found[model.strip()] = price
    return found


def cost(
    model: str,
    input: int,
    output: int = 0,
    cache_write: int = 0,
    cache_read: int = 0,
    known: Mapping[str, Price] = PRICES,
) -> float | None:
    """Dollars for tokens; None if the price is unknown, as of models on a server of one's own.

    `input`: tokens that were neither written to a cache nor read from it.
    """
    price = known.get(model)
    if price is None:
        return None
    inputs = input + cache_write * CACHE_WRITE + cache_read * CACHE_READ
    return (inputs * price.input + output * price.output) / 1e6
