"""Errors, named by what the caller can do about them. Every message is a sentence for the user."""


class AskfolderError(Exception):
    """Base of all errors. `str(error)` says what was tried, on what, and what to do next."""


class PermanentError(AskfolderError):
    """A retry with the same input cannot succeed."""


class SettingsError(PermanentError):
    """A setting is wrong. The process does not start."""


class RefusedError(PermanentError):
    """The provider accepts the key and the model, but not this request."""


class UnreadableError(PermanentError):
    """The file cannot be read: it is damaged, encrypted, too large, not supported, or without text."""


class TransientError(AskfolderError):
    """A later retry may succeed. `retry_after`: the seconds that the other side asked for, or None."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SlowDownError(TransientError):
    """The provider has too many requests, and asks for fewer."""
