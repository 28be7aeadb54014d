"""The failures that a command explains in one line; anything else that is raised is a bug of ours."""


class ExplainedError(Exception):
    """A failure whose message is one sentence for the user. Commands print it on one line and exit with 1."""


class InputError(ExplainedError, ValueError):
    """Bad input: the message names the offending value, what was expected and how to mend it. HTTP answers 422."""
