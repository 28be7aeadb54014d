"""Exceptions that commands report in one line; any other exception is a bug."""


class ExplainedError(Exception):
    """A failure whose message is one sentence for the user. Commands print it on one line and exit with 1."""


class InputError(ExplainedError, ValueError):
    """Invalid input: the message names the value, what was expected and how to fix it. The HTTP status is 422."""


class ServerError(InputError):
    """A server that this program calls cannot be reached, refuses or gives a wrong answer. The HTTP status is 502."""
