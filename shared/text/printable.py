"""Format untrusted text and figures for printing."""

JOINERS = "\u200c\u200d"  # scripts and emoji need them


def printable(text: str, keep: str = JOINERS) -> str:
    """The text with control, direction and other unprintable characters written as escapes; those of `keep` stay."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def dollars(amount: float | None, digits: int = 4) -> str:
    return "unknown" if amount is None else f"${amount:,.{digits}f}"
