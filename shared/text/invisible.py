"""Remove characters that no reader sees."""

import re

_TAG_CHARACTERS = "\U000e0000-\U000e007f"

_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"

_HIDDEN = re.compile(
    "(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f)"  # the flags of Scotland and others stay
    "|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]"
    "|[\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a]"
    f"|[{_TAG_CHARACTERS}]"
    # Joiners belong between letters of some scripts, and in emoji; selectors behind a sign that has variants.
    "|(?<![\u0590-\u1fff\u2100-\U000dffff])[\u200c\u200d]|[\u200c\u200d](?=[\u200c\u200d])"
    f"|(?<![^\\x00-\\x22\\x24-\\x29\\x2b-\\x2f\\x3a-\\u00a8{_SELECTORS}])[{_SELECTORS}]"
)


def visible(text: str) -> str:
    """Remove invisible characters: controls, tags, direction marks, zero-width characters and stray selectors.

    Spaces, line ends, flags, and the joiners that scripts and emoji need, stay.
    """
    return _HIDDEN.sub(lambda match: match[1] or "", text)


def places(text: str) -> list[int]:
    """Return the index in `text` of each character of `visible(text)`, and the length of `text` at the end."""
    hidden = {at for match in _HIDDEN.finditer(text) if not match[1] for at in range(*match.span())}
    return [at for at in range(len(text) + 1) if at not in hidden]
