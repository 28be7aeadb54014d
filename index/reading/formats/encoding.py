"""Text of unknown encoding."""

import codecs
from typing import Any

from gpt_core.common.extras import extra
from index.reading.formats.extracted import Unreadable

# Bytes in which the encoding is looked for; a longer text would take seconds.
SAMPLE = 1 << 18
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UTF8 = "utf-8-sig"
# Encodings of old documents; of those that fit a short text equally well, the first is taken.
OLD_ENCODINGS = [
    *("cp1252", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1251", "koi8_r", "cp1250", "cp1253"),
    *("cp1255", "cp1256"),
]


def decode(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """The text of `data`, with its own line ends, and the name of its encoding.

    UTF-8 is tried first, then the encoding that the file declares, then the one of `OLD_ENCODINGS` that fits best by
    charset-normalizer.

    Raises:
        Unreadable: for data that are no text in any encoding, or that have a zero byte. The message names no file.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return _checked(data, encoding), encoding
    try:
        return _checked(data, UTF8), UTF8
    except UnicodeDecodeError:
        pass
    if declared:
        try:
            return _checked(data, declared), declared
        except (LookupError, UnicodeDecodeError):
            pass
    with extra("documents"):
        from charset_normalizer import from_bytes
    found: Any = [] if b"\0" in data else from_bytes(data[:SAMPLE], cp_isolation=OLD_ENCODINGS)
    fits = [(match.chaos - match.coherence, OLD_ENCODINGS.index(encoding), encoding)
            for match in found for encoding in match.could_be_from_charset]  # fmt: skip
    if not fits:
        raise Unreadable("it is not text in a known encoding.")
    encoding = min(fits)[2]
    return data.decode(encoding, "replace"), encoding


def _checked(data: bytes, encoding: str) -> str:
    text = data.decode(encoding)
    if "\0" in text:
        raise Unreadable("it is not text: it contains a zero byte.")
    return text
