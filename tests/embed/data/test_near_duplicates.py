"""Near-duplicates: exactly the pairs of texts that share enough n-grams are found."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed.data.near_duplicates import NGRAM_WORDS, near_duplicates, read_texts, without_near_duplicates
from embed.data.pairs import Example
from gpt_core.common.errors import InputError
from tests.beir_folders import write_beir

PASSAGE = (
    "The harbour master counts the boats each evening before the lamps are lit, and writes their names in a book "
    "that his grandfather began in the year of the great storm, when eleven of them did not come back."
)
WORDS = PASSAGE.split()
# a vocabulary of three words, so that texts share n-grams
SHORT = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


def overlap(ours: str, theirs: str) -> float:
    """The overlap, computed directly from its definition."""
    runs = []
    for found in (ours.split(), theirs.split()):
        n = min(len(found), NGRAM_WORDS)
        runs.append({tuple(found[i : i + n]) for i in range(len(found) - n + 1)} if found else set())
    return len(runs[0] & runs[1]) / min(map(len, runs)) if all(runs) else 0.0


@settings(max_examples=50)
@given(st.lists(SHORT, max_size=5), st.lists(SHORT, max_size=5), st.sampled_from([0.1, 0.5, 1.0]))
def test_equals_a_brute_force_search(train, evaluation, least):
    expected = [
        (i, j, pytest.approx(overlap(ours, theirs)))
        for i, ours in enumerate(train)
        for j, theirs in enumerate(evaluation)
        if overlap(ours, theirs) >= least
    ]
    assert near_duplicates(train, evaluation, least) == expected


@pytest.mark.parametrize(
    "other",
    [
        PASSAGE.upper().replace(",", " --"),
        " ".join(WORDS[6:30]),  # an excerpt
        f"Long before that, nothing. {PASSAGE} And so it went on.",
        " ".join([*WORDS[:18], "very", *WORDS[18:]]),
    ],
)
def test_excerpts_and_variants_of_a_passage_are_found(other):
    assert [pair[:2] for pair in near_duplicates(["unrelated", other], ["something else", PASSAGE])] == [
        (1, 1)
    ]
    assert [pair[:2] for pair in near_duplicates([PASSAGE], [other])] == [(0, 0)]


@pytest.mark.parametrize(
    "other",
    [
        " ".join(sorted(WORDS)),  # the same words
        "The harbour master counts the boats each morning and knows all of their names by heart.",
        "",
        "...",
    ],
)
def test_texts_without_common_ngrams_are_not_found(other):
    assert near_duplicates([other, "..."], [PASSAGE, "", "..."]) == []


def test_short_texts_and_chinese():
    train = ["What causes diabetes?", "知之为知之，不知为不知，是知也。", "diabetes"]
    evaluation = ["what causes Diabetes", "子曰：知之为知之不知为不知是知也", "what causes it", "Diabetes!"]
    assert [pair[:2] for pair in near_duplicates(train, evaluation)] == [(0, 0), (1, 1), (2, 3)]


def test_text_indices_continue_across_chunks():
    train = (
        f"{i} {PASSAGE}" if i in (7, 2500) else f"text {i} of many that have nothing in common"
        for i in range(3000)
    )
    assert [pair[:2] for pair in near_duplicates(train, [PASSAGE])] == [(7, 0), (2500, 0)]


@pytest.fixture
def collection(tmp_path):
    documents = [{"_id": "d", "title": "The harbour", "text": PASSAGE}]
    return write_beir(
        tmp_path / "sea", documents, [{"_id": "q", "text": "who counts the boats"}], "q\td\t1\n"
    )


def test_examples_of_an_evaluation_set_are_left_out_and_counted(collection, capsys):
    good = Example("where do the boats go", ("Out to sea.",), ("Home.",))
    bad = [
        Example("Who counts the boats?", ("The harbour master.",)),
        Example("what does he do", ("Sleep.", PASSAGE)),
        Example("and then", ("Sleep.",), (PASSAGE.lower(),)),
    ]
    assert without_near_duplicates("mine", [bad[0], good, *bad[1:]], [collection]) == [good]
    said = capsys.readouterr().err
    assert said.startswith("mine: 3 of 4 examples removed")
    assert "'Who counts the boats?', evaluation text 'who counts the boats'" in said
    assert without_near_duplicates("mine", [good], [collection]) == [good]
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="all 3 examples are near-duplicates"):
        without_near_duplicates("mine", bad, [collection])


def test_reads_every_text_of_a_set(collection, tmp_path):
    assert read_texts(collection) == [f"The harbour {PASSAGE}", "who counts the boats"]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"query": "q", "pos": ["p", "r"], "neg": ["n"]}) + "\n")
    assert read_texts(path) == ["q", "p", "r", "n"]
    path = tmp_path / "pairs.csv.gz"
    path.write_bytes(gzip.compress(b'sentence1,sentence2,score\na,"b, c",1.5\nd,e,2\n'))
    assert read_texts(path) == ["a", "d", "b, c", "e"]
