"""When two texts are the same."""

import unicodedata


def text_key(text: str) -> str:
    """A string that is equal for texts that differ by white space or Unicode form (NFKC) only; "" for a blank text."""
    return " ".join(unicodedata.normalize("NFKC", text).split())
