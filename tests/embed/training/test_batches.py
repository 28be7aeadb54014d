"""Texts that differ by white space or Unicode form only are one text in a batch."""

import torch

from embed.data.pairs import Example
from embed.training.batches import Collator, TaskData
from embed.training.data import hold_out
from embed.training.dev_scores import ndcg

EXAMPLES = [
    Example("capital of France?", ("Paris is the capital. ",), ("Ｌｙｏｎ is  no capital.",)),
    Example("capital of  France? ", ("The capital is Paris.",), ("Lyon is no capital.",)),
    Example("where is Paris", ("Paris is\nthe capital.",)),
    Example("The capital  is Paris.", ("So it is.",)),
]


def test_known_answers_and_equal_texts_are_found_in_any_spelling():
    data = TaskData("spellings", EXAMPLES)
    collate = Collator(lambda texts: [[1] for _ in texts], {"query": "", "document": ""}, n_negatives=1)
    batch = collate(data, [(i, 0) for i in range(4)])
    texts = [data.texts[entry][1] for entry in batch.entries]
    candidates = [texts[i] for i in batch.candidates]
    answers = {(int(i), candidates[int(j)]) for i, j in batch.answers.T}
    paris, capital = {"Paris is the capital. ", "Paris is\nthe capital."}, {"The capital is Paris."}
    expected = {0: paris | capital, 1: paris | capital, 2: paris, 3: {"So it is."}}
    assert answers == {(i, text) for i, found in expected.items() for text in found}
    ids = dict(zip(texts, batch.texts.tolist(), strict=True))
    assert ids["capital of France?"] == ids["capital of  France? "]
    assert ids["Ｌｙｏｎ is  no capital."] == ids["Lyon is no capital."]
    assert ids["The capital is Paris."] == ids["The capital  is Paris."]  # of any role
    assert len(set(ids.values())) == 6


def test_a_positive_in_another_spelling_counts_as_found():
    data = TaskData("spellings", [EXAMPLES[0], EXAMPLES[2]])
    vectors = torch.eye(len(data.texts))
    documents = [("document", text) for text in ("Paris is the capital. ", "Paris is\nthe capital.")]
    queries = [("query", example.query) for example in data.examples]
    for query in data.entries(queries):  # each finds both spellings first
        vectors[query] = vectors[data.entries(documents)].sum(dim=0)
    assert ndcg(data, vectors) == 1


def test_examples_of_one_positive_stay_together_in_any_spelling():
    made = [Example(f"query {i} {j}", (f"positive  {i}" + " " * j,)) for i in range(20) for j in range(2)]
    rest, held = hold_out(made, 4, seed=0)
    groups = [{example.positives[0].strip() for example in part} for part in (rest, held)]
    assert len(held) == 4
    assert not groups[0] & groups[1]
