import resource
import time
from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core import Tokenizer
from gpt_core.common.errors import InputError
from index.reading.document import Document
from index.reading.passages import split

TOKENIZERS = {
    "bytes": Tokenizer.from_pretrained("gpt2"),
    "characters": Tokenizer.from_characters("".join(map(chr, range(0x20, 0x7F))) + "\n知之为不是也。！？🙂"),
}
PIECES = [
    *("a", "word", "Sentence one. ", "Why? ", "(Yes!) ", "\n", "\n\n", "  ", " ", "x" * 60, "a b c d e f g "),
    *(
        "\n# Heading\n\n",
        "\n| a | b |\n| --- | --- |\n| 1 | 2 |\n",
        "\n```\nif a:\n    b(1)\n```\n",
        "\n    x = {1}\n",
    ),
    *(
        "知之为知之，不知为不知，是知也。",
        "不",
        "🙂",
        "👩‍👩‍👧‍👦",
        "e\u0301",
        "\u3000",
        "\r\n\r\n",
        "\t",
        "ẞß",
        "𠀀𠀁",
    ),
]


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(st.sampled_from(PIECES), max_size=120).map("".join) | st.text(max_size=300),
    max_tokens=st.integers(16, 64),
    data=st.data(),
)
def test_passages_respect_max_tokens_and_overlap_and_cover_the_text(text, max_tokens, data):
    overlap = data.draw(st.integers(0, max_tokens // 2))
    tokenizer = TOKENIZERS["bytes"]
    passages = list(split(Document("d", text), tokenizer, max_tokens, overlap))
    covered = set()
    for passage in passages:
        assert text[passage.start : passage.end] == passage.text == passage.text.strip() != ""
        assert passage.id == f"d#{passage.start}-{passage.end}"
        assert len(tokenizer.encode(passage.text)) <= max_tokens
        covered |= set(range(passage.start, passage.end))
    assert {i for i, character in enumerate(text) if not character.isspace()} <= covered
    for one, other in pairwise(passages):
        assert one.start < other.start
        assert one.end < other.end
        if one.end > other.start:
            # a token across the boundary may be split in two
            assert len(tokenizer.encode(text[other.start : one.end])) <= overlap + 4
        if overlap == 0:
            assert one.end <= other.start
    assert passages == list(split(Document("d", text), tokenizer, max_tokens, overlap))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["🙂", "👩‍👩‍👧‍👦", "e\u0301", "🇨🇳", "知", "x", "กำ"]), max_size=150).map("".join)
)
def test_no_grapheme_is_divided(text):
    tokenizer = TOKENIZERS["bytes"]
    starts = {match.start() for match in regex.finditer(r"\X", text)} | {len(text)}
    for passage in split(Document("d", text), tokenizer, 40, 8):
        assert {passage.start, passage.end} <= starts


def cut(text: str, max_tokens: int = 48, overlap: int = 8) -> list[str]:
    return [passage.text for passage in split(Document("d", text), TOKENIZERS["bytes"], max_tokens, overlap)]


def test_a_passage_ends_before_a_heading_in_its_second_half():
    first, second = cut("One sentence of words. " * 7 + "\n\n## Part two\n\n" + "Other words of it. " * 5)
    assert first.endswith("of words.")
    assert second.startswith("## Part two\n\nOther words")
    (only,) = cut("# Short\n\nText.\n\n# And short\n\nText.")
    assert only.count("#") == 2


TABLE = "| name | number |\n| --- | --- |\n" + "| some row | 12 |\n" * 5
FENCED = "```python\nif a:\n    b(1)\n\nfor x in y:\n    c(x)\n    d(x)\n```\n"


@pytest.mark.parametrize("block", [TABLE, FENCED])
def test_a_table_or_code_that_fits_is_in_one_passage(block):
    passages = cut("A sentence of words here. " * 6 + "\n\n" + block + "\n" + "And words behind it. " * 9)
    assert sum(block.strip() in passage for passage in passages) == 1
    assert [p for p in passages if "```" in p or "|" in p] == [p for p in passages if p.startswith(block[:8])]


@pytest.mark.parametrize(
    ("block", "line"),
    [
        (TABLE + "| some row | 12 |\n" * 60, "| some row | 12 |"),
        ("```\n" + "call(argument, 1)\n" * 40 + "```", "call(argument, 1)"),
    ],
)
def test_a_longer_one_is_divided_at_the_ends_of_lines(block, line):
    passages = cut(block)
    assert len(passages) > 3
    assert all(part in (line, *block.split("\n")) for passage in passages for part in passage.split("\n"))


def test_passages_end_at_sentence_and_paragraph_boundaries():
    tokenizer = TOKENIZERS["characters"]
    sentences = [
        "The quick brown fox jumps over the lazy dog. ",
        "It barks! ",
        "知之为知之，".replace("，", "。"),
    ]
    text = "".join(sentences[i % 3] for i in range(60))
    passages = list(split(Document("d", text), tokenizer, 200, 60))
    assert len(passages) > 5
    assert all(passage.text[-1] in ".!。" for passage in passages)
    assert all(text[: passage.start].rstrip()[-1:] in ("", ".", "!", "。") for passage in passages)

    text = "a" * 90 + "\n\n" + "b. " * 40
    first, second = list(split(Document("d", text), tokenizer, 100, 0))[:2]
    assert first.text == "a" * 90
    assert second.start == 92


def test_neighbouring_passages_overlap():
    text = " ".join(f"word{i}" for i in range(400))
    passages = list(split(Document("d", text), TOKENIZERS["bytes"], 64, 16))
    shared = [a.end - b.start for a, b in pairwise(passages)]
    assert min(shared) > 0


def test_a_title_alone_gives_an_empty_passage_and_an_empty_document_none():
    (passage,) = split(Document("d", " \n", "Title"), TOKENIZERS["bytes"])
    assert (passage.start, passage.end, passage.text) == (0, 0, "")
    assert list(split(Document("d", " \n", " "), TOKENIZERS["bytes"])) == []


@pytest.mark.parametrize(("max_tokens", "overlap"), [(15, 0), (0, 0), (64, 33), (64, -1)])
def test_invalid_lengths_are_refused(max_tokens, overlap):
    with pytest.raises(InputError, match=r"expected (at least 16|0 to 32)"):
        list(split(Document("d", "text"), TOKENIZERS["bytes"], max_tokens, overlap))


@pytest.mark.parametrize("unit", ["x", "word and word. ", " ", "知", "\n"])
def test_time_and_memory_grow_linearly_with_the_text(unit):
    """A long text without sentence boundaries; the memory is measured beyond that of the text itself."""

    def seconds(n: int) -> float:
        document = Document("d", unit * (n // len(unit)) + "end")
        start = time.process_time()
        assert sum(len(passage.text) for passage in split(document, TOKENIZERS["bytes"])) > 0
        return time.process_time() - start

    seconds(20_000)
    small = seconds(100_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert seconds(800_000) < 8 * 4 * small + 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
