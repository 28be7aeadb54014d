"""What can go wrong in serving besides a user's mistake, which is an `InputError`, and a bug."""


class UnavailableError(RuntimeError):
    """The service cannot take this now but may later: it is loading, shutting down, or its worker has died."""


class OverloadedError(UnavailableError):
    """As many requests are waiting as may wait."""


class GenerationError(RuntimeError):
    """The model failed while it wrote this one answer."""


class NotFoundError(LookupError):
    """There is no such model."""
