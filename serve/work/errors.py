"""Errors of the service; invalid input is an `InputError`."""

STOPPING = "The server is shutting down."


class UnavailableError(RuntimeError):
    """The service is temporarily unavailable: it is loading or shutting down, or its worker has died."""


class OverloadedError(UnavailableError):
    """The maximum number of running and waiting requests is reached."""


class GenerationError(RuntimeError):
    """The model failed during one request; others are not affected."""


class NotFoundError(LookupError):
    """The requested model is not served."""
