"""Prompts on the command line: a text, or FILE:path."""

from pathlib import Path

from gpt_core.common.errors import InputError

MAX_FILE_BYTES = 64 * 2**20  # larger files are rejected before they are decoded
MAX_TOKEN_CHARACTERS = 128  # GPT-2's longest token is a run of 128 spaces


def read_prompt(text: str) -> str:
    """`text`, or the content of the file if it is FILE:path.

    Raises:
        InputError: for a file that is missing, empty, too large for any context, or not UTF-8.
    """
    if not text.startswith("FILE:"):
        return text
    path = Path(text.removeprefix("FILE:"))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path} to read the prompt from.") from error
    except IsADirectoryError as error:
        raise InputError(
            f"The prompt is {text}, which is a folder; expected FILE: and the path of a file."
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise InputError(
            f"{path} holds more than {MAX_FILE_BYTES // 2**20} MiB, the maximum for a prompt; shorten it."
        )
    try:
        decoded = content.decode("utf-8-sig")  # without a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; convert it to UTF-8 first.") from error
    if not decoded:
        raise InputError(f"{path} is empty; expected a text.")
    return decoded


def refuse_long(text: str, context: int, what: str = "prompt") -> None:
    """Reject a text that cannot fit a context of `context` tokens, before the slow tokenization.

    Raises:
        InputError: if the text does not fit even if all its tokens have the maximum length.
    """
    if len(text) > context * MAX_TOKEN_CHARACTERS:
        raise InputError(
            f"The {what} has {len(text)} characters; the context holds {context} tokens. Shorten the {what}."
        )
