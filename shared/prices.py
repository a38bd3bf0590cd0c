"""What models cost, in one place: dollars per million tokens, as their makers listed them in November 2026."""

from dataclasses import dataclass

CACHE_WRITE, CACHE_WRITE_HOUR, CACHE_READ = 1.25, 2.0, 0.1  # of the input's price (Anthropic)


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens that go in and come out."""

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


def cost(model: str, input: int, output: int = 0, cache_write: int = 0, cache_read: int = 0) -> float | None:
    """Dollars for so many tokens; `input` are those that were neither written to a cache nor read from it. None: no price is known.

    Models of one's own, as built in or on another server, are not in the list: they cost nothing that is known here.
    """
    price = PRICES.get(model)
    if price is None:
        return None
    whole = input + cache_write * CACHE_WRITE + cache_read * CACHE_READ
    return (whole * price.input + output * price.output) / 1e6
