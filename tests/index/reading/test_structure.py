"""The blocks of Markdown, reStructuredText and plain text."""

from hypothesis import given
from hypothesis import strategies as st

from index.reading.structure import blocks

MARKDOWN = """# Title

A first paragraph
of two lines. And a sentence.

## Section ##
- one
- two
  continued
1. three

```python
# a comment, not a heading
x = 1
```
| a | b |
|---|---|
| 1 | 2 |

Underlined
----------
Text below.
"""
RST = """=====
Title
=====

Section
~~~~~~~

Text that goes on
:pep:`8`, with an example::

    x = {
        1: 2}

.. code-block:: python
   :linenos:

   print("hi")

.. note:: Words.

Deeper
^^^^^^

#. First.

+---+---+
| a | b |
+---+---+

>>> 1 + 1
"""
CHINESE = "一、缓存方案：采用 Redis。\n二、过期时间为十五分钟。\n\n正文没有标题。"


def read(text: str) -> list[tuple[str, int, str]]:
    return [(b.kind, b.level, text[b.start : b.end]) for b in blocks(text)]


def test_markdown() -> None:
    assert read(MARKDOWN) == [
        ("heading", 1, "Title"),
        ("prose", 0, "A first paragraph\nof two lines. And a sentence."),
        ("heading", 2, "Section"),
        ("item", 0, "one"),
        ("item", 0, "two\n  continued"),
        ("item", 0, "three"),
        ("code", 0, "# a comment, not a heading"),
        ("code", 0, "x = 1"),
        ("row", 0, "| a | b |"),
        ("row", 0, "| 1 | 2 |"),
        ("heading", 1, "Underlined"),
        ("prose", 0, "Text below."),
    ]


def test_restructuredtext() -> None:
    assert read(RST) == [
        ("heading", 1, "Title"),
        ("heading", 2, "Section"),
        ("prose", 0, "Text that goes on\n:pep:`8`, with an example::"),
        ("code", 0, "x = {"),
        ("code", 0, "1: 2}"),
        ("code", 0, 'print("hi")'),
        ("heading", 3, "Deeper"),
        ("item", 0, "First."),
        ("row", 0, "| a | b |"),
        ("code", 0, ">>> 1 + 1"),
    ]


def test_chinese_items() -> None:
    assert read(CHINESE) == [
        ("item", 0, "缓存方案：采用 Redis。"),
        ("item", 0, "过期时间为十五分钟。"),
        ("prose", 0, "正文没有标题。"),
    ]


@given(
    st.lists(
        st.sampled_from([*"a#-=~`|*.: \n\r\t一、>", "::", "```", "\n\n", "---", "| a |", "1. "]), max_size=60
    )
)
def test_blocks_are_in_order_and_without_white_space_around_them(pieces: list[str]) -> None:
    text = "".join(pieces)
    end = 0
    for block in blocks(text):
        assert end <= block.start <= block.end <= len(text)
        assert text[block.start : block.end].strip() == text[block.start : block.end]
        end = block.end
