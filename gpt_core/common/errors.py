"""The one exception that a user's mistake raises, in every room."""


class InputError(ValueError):
    """Bad input, said in one sentence: the offending value, what was expected, and how to mend it.

    Doors print it on one line and exit 1; the HTTP API answers 422. Anything else that is raised is our bug.
    """
