"""Why a score is not there."""


class ScorerMissingError(RuntimeError):
    """A metric cannot be computed here; the message says what it needs."""
