"""Rows: GPT-1's formats, truncation, and the parts of a long passage."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.common.errors import InputError
from gpt_core.tasks.batches import Collator, span_target
from gpt_core.tasks.examples import Example
from gpt_core.tasks.inputs import InputFormat
from gpt_core.tasks.settings import TaskSettings
from gpt_core.tokenizer.tokenizer import Tokenizer

GPT2 = Tokenizer.from_pretrained("gpt2")
END = 50256


def rows_of(task, *texts, max_tokens=64, **given):
    (rows,) = InputFormat(task, GPT2, max_tokens).rows([Example("here", texts, **given)])
    return [row.ids.tolist() for row in rows]


def test_formats():
    a, b, c = (GPT2.encode(text) for text in ("one two", "three", "four"))
    assert rows_of("classification", "one two") == [[END, *a, END]]
    assert rows_of("entailment", "one two", "three") == [[END, *a, END, *b, END]]
    assert rows_of("similarity", "one two", "three") == [[END, *a, END, *b, END], [END, *b, END, *a, END]]
    assert rows_of("choice", "one two", "three", "four") == [[END, *a, END, *b, END], [END, *a, END, *c, END]]
    assert rows_of("span", "three", "one two") == [[END, *b, END, *a, END]]


@given(st.integers(0, 30), st.integers(0, 30), st.integers(3, 40))
def test_the_longer_text_is_cut_to_the_longest_row(n_first, n_second, max_tokens):
    inputs = InputFormat("entailment", GPT2, max_tokens)
    first, second = " a" * n_first, " b" * n_second
    ((row,),) = inputs.rows([Example("here", (first, second))])
    a, b = GPT2.encode(" a")[0], GPT2.encode(" b")[0]
    kept = [row.ids.tolist().count(i) for i in (a, b)]
    assert len(row) == min(max_tokens, n_first + n_second + 3)
    assert inputs.n_cut == (n_first + n_second + 3 > max_tokens)
    if inputs.n_cut:  # no text loses tokens while it is shorter than the other
        shorter = min(n_first, n_second)
        assert min(kept) >= min(shorter, (max_tokens - 3) // 2)
    assert row.ids[0] == row.ids[-1] == END


@settings(max_examples=60)
@given(st.integers(1, 120), st.integers(24, 60), st.data())
def test_parts_of_a_passage_cover_it_and_hold_every_short_answer(n_words, max_tokens, data):
    passage = "".join(f"{chr(97 + i % 26)}word " for i in range(n_words)) + "末尾"
    rows = InputFormat("span", GPT2, max_tokens).rows([Example("here", ("who?", passage))])[0]
    assert all(len(row) <= max_tokens for row in rows)
    covered = sorted({offset for row in rows for offset in row.offsets})
    assert covered == sorted(set(GPT2.encode_with_offsets(passage)[1]))
    for row in rows:
        assert len(row) == row.first + len(row.offsets) + 1
    start = data.draw(st.integers(0, len(passage) - 1))
    end = data.draw(st.integers(start + 1, min(len(passage), start + 6)))
    targets = [(row, span_target(((start, end),), row, 99)) for row in rows]
    found = [(row, target) for row, target in targets if target is not None]
    assert found
    for row, (first, last) in found:
        begin, stop = row.offsets[first - row.first][0], row.offsets[last - row.first][1]
        assert begin <= start < end <= stop


def test_a_question_that_fills_the_row_is_cut_and_counted():
    inputs = InputFormat("span", GPT2, 32)
    rows = inputs.rows([Example("here", (" why" * 100, " because" * 40))])[0]
    assert inputs.n_cut == 1
    assert all(len(row) <= 32 for row in rows)
    assert all(len(row.offsets) >= 1 for row in rows)


def test_the_padding_id_is_not_that_of_the_last_token():
    assert InputFormat("classification", GPT2, 8).pad_id != END
    collate = Collator(
        InputFormat("classification", GPT2, 8), TaskSettings("classification", padding_mask=False)
    )
    example = Example("here", ("x",))
    batch = collate.batch(collate.units(example, collate.inputs.rows([example])[0]))
    assert batch.ids[0].tolist() == [0] * 5 + [END, GPT2.encode("x")[0], END]
    assert (batch.begins.tolist(), batch.ends.tolist()) == ([5], [7])


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(InputError, match="no token for the end or the begin"):
        InputFormat("classification", Tokenizer.from_characters("abc"), 8)
