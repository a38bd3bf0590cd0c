"""Deletions and moves that a person must confirm."""

STILL_SECONDS = 0.3  # removals are carried out when none was added for so long …

GUARDED_FILES, SECOND_LOOK_SECONDS = 20, 1.0  # … or, so many at once, for so long; and their share is judged


class NeedsConfirmation(Exception):
    """A scan that must not be carried out until somebody confirms it; the message says why."""
