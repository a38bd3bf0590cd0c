"""What went wrong, named by what can be done about it. Every message is a sentence for the person who reads it."""


class AskfolderError(Exception):
    """Base of all errors of ours; `str(error)` says what was tried, on what, and what to do next."""


class PermanentError(AskfolderError):
    """Trying again with the same input cannot help."""


class SettingsError(PermanentError):
    """The configuration is wrong; the start stops."""


class RefusedError(PermanentError):
    """The provider accepts the key and the model, but not this request."""


class UnreadableError(PermanentError):
    """The file cannot be read: broken, encrypted, too large, of a kind that is not supported, or without any text."""


class TransientError(AskfolderError):
    """Trying again later may help. `retry_after`: seconds that the other side asked for, if it did."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SlowDownError(TransientError):
    """The provider has too many requests, and asks for fewer."""
