"""What people hand a door to read: a text, or a file that holds one."""

from pathlib import Path

from gpt_core.common.errors import InputError

LARGEST = 64 * 2**20  # bytes of a file that is still taken for a prompt
LONGEST_TOKEN = 128  # characters; GPT-2's longest is a run of 128 spaces


def read_prompt(text: str) -> str:
    """`text` itself, or what is in the file if it is FILE:path.

    Raises:
        InputError: for a file that is missing, empty, too large for any context, or not UTF-8.
    """
    if not text.startswith("FILE:"):
        return text
    path = Path(text.removeprefix("FILE:"))
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path} to read the prompt from.") from error
    except IsADirectoryError as error:
        raise InputError(
            f"The prompt is {text}, which is a folder; expected FILE: and the path of a file."
        ) from error
    if not content:
        raise InputError(f"{path} is empty; expected a text to begin with.")
    if len(content) > LARGEST:
        raise InputError(f"{path} holds more than {LARGEST // 2**20} MiB; no context holds so much: cut it.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; convert it to UTF-8 first.") from error


def refuse_long(text: str, context: int, what: str = "prompt") -> None:
    """Refuse a text that cannot fit a context of that many tokens, before its tokens are counted, which takes long.

    Raises:
        InputError: if it would not fit even if all its tokens were as long as tokens get.
    """
    if len(text) > context * LONGEST_TOKEN:
        raise InputError(
            f"The {what} has {len(text)} characters; there is room for {context} tokens: shorten it."
        )
