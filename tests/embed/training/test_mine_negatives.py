"""Mining hard negatives: the same as sentence-transformers', and never a positive."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from embed.training.mine_negatives import Scorer, Window, mine_negatives, search_negatives
from gpt_core.common.errors import InputError
from tests.beir_folders import write_beir
from tests.tiny_models import reference_model, save_model

FRUIT = ["apple", "pear", "plum", "cherry", "grape", "melon", "lemon", "mango", "peach", "fig"]
PAIRS = [
    (f"what is a {fruit}", f"a {fruit} is a fruit that grows in the {i % 4} quarter")
    for i, fruit in enumerate(FRUIT)
]


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"query": q, "positive": p}) + "\n" for q, p in pairs))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    reference_model(save_model(folder / "gpt", "qwen3"), "weightedmean", 64).save(str(folder / "embedder"))
    return folder / "embedder"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZHIZHI_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("margin", "rank_min", "rank_max"), [(None, 0, 9), (None, 2, 6), (0.02, 0, 9), (0.002, 1, 9)]
)
def test_mined_negatives_equal_sentence_transformers(
    tmp_path, cache, embedder, capsys, margin, rank_min, rank_max
):
    pairs = [*PAIRS, (PAIRS[0][0], PAIRS[3][1])]  # a query with two positives
    mine_negatives(
        data=str(write_pairs(tmp_path / "data.jsonl", pairs)),
        out=tmp_path / "out.jsonl",
        by=str(embedder),
        negatives=3,
        rank_min=rank_min,
        rank_max=rank_max,
        relative_margin=margin,
        max_tokens=64,
        device="cpu",
    )
    ours = {(row["query"], row["pos"][0]): row["neg"] for row in read(tmp_path / "out.jsonl")}
    assert list(ours) == pairs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = mine_hard_negatives(
            Dataset.from_dict({"query": [q for q, _ in pairs], "positive": [p for _, p in pairs]}),
            SentenceTransformer(str(embedder), device="cpu"),
            range_min=rank_min,
            range_max=rank_max,  # with a margin it considers a few more candidates, hence 9: all texts
            relative_margin=margin,
            num_negatives=3,
            query_prompt_name="query",
            corpus_prompt_name="document",
            output_format="triplet",
            verbose=False,
        )
    expected: dict[tuple[str, str], list[str]] = {pair: [] for pair in pairs}
    for row in theirs:
        expected[row["query"], row["positive"]].append(row["negative"])
    assert ours == expected
    assert any(ours.values())


def test_queries_and_texts_that_differ_by_white_space_share_their_positives(tmp_path, capsys):
    answers = ["Paris is the capital of France.", "The capital of France is Paris,  on the Seine."]
    rows = [
        ("What is the capital of France?", answers[0]),
        ("What is the  capital of France?\u3000", answers[1]),
        ("where is Lyon", "Lyon is not the capital of France."),
        ("which capital is on the Seine", answers[1].replace("  ", " ")),
    ]
    path = write_pairs(tmp_path / "data.jsonl", rows)
    with path.open("a") as file:
        file.write(
            json.dumps({"query": "q", "pos": ["p of France"], "neg": ["Paris is  the capital of France. "]})
        )
    mine_negatives(data=str(path), out=tmp_path / "out.jsonl", relative_margin=None)
    first, second, _, fourth, fifth = (row["neg"] for row in read(tmp_path / "out.jsonl"))
    assert first == second == [rows[2][1], "p of France"]
    assert answers[1] not in fourth
    assert fifth[0] == "Paris is  the capital of France. "
    assert answers[0] not in fifth
    assert "4 distinct queries, from 4 texts" in capsys.readouterr().out


scores = st.integers(-16, 16).map(lambda n: n / 16)  # exact in float32


@settings(max_examples=60)
@given(
    st.lists(st.lists(scores, min_size=12, max_size=12), min_size=1, max_size=3),
    st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=4), min_size=4, max_size=4),
    st.sampled_from([None, 0.0, 0.25, 0.5]),
    st.integers(0, 3),
    st.sampled_from(["top", "random"]),
)
def test_no_negative_is_a_positive_or_too_near_one(rows, positives, margin, rank_min, sampling):
    queries, texts = [f"query {i}" for i in range(len(rows))], [f"text {i}" for i in range(12)]
    texts[5] = " query 0 "
    own = [sorted(p) for p in positives[: len(rows)]]
    window = Window(2, rank_min, 6, margin, sampling)
    matrix = torch.tensor(rows)
    scorer = Scorer(lambda start, stop: matrix[start:stop].clone())
    for i, mined in enumerate(search_negatives(scorer, None, queries, texts, own, window)):
        lowest = min(rows[i][p] for p in own[i])
        candidates = [p for p in range(12) if p not in own[i] and not (i == 0 and p == 5)]
        ranked = sorted(candidates, key=lambda p: -rows[i][p])[:6]
        left = [p for p in ranked if margin is None or rows[i][p] <= lowest - abs(lowest) * margin]
        assert set(mined.places) <= set(candidates)
        assert len(mined.places) == min(2, max(0, len(left) - rank_min))
        assert mined.scores == sorted((rows[i][p] for p in mined.places), reverse=True)
        if margin is not None:
            assert all(score <= lowest - abs(lowest) * margin for score in mined.scores)
        if sampling == "top":
            assert mined.scores == [rows[i][p] for p in left[rank_min : rank_min + 2]]


def test_a_guide_ranks_and_filters_bm25_candidates():
    by_words = Scorer(lambda start, stop: torch.tensor([[3.0, 2.0, 1.0, 0.0]]), above=0)
    guide = Scorer(lambda start, stop: torch.tensor([[-0.2, -0.3, -0.1, -0.9]]))
    (mined,) = search_negatives(by_words, guide, ["q"], ["p", "a", "b", "c"], [[0]], Window(1, 0, 4))
    assert mined.places == [1]  # b is nearer than the positive, and c shares no word with the query
    assert mined.scores == [pytest.approx(-0.3)]
    assert mined.n_rejected == 1


def test_bm25_over_a_beir_corpus(tmp_path, capsys):
    documents = [{"_id": fruit, "text": answer} for fruit, (_, answer) in zip(FRUIT, PAIRS, strict=True)]
    documents += [{"_id": "x", "text": "melon, pear or fig?"}, {"_id": "y", "text": " pear"}]
    queries = [{"_id": fruit, "text": fruit} for fruit in FRUIT]
    qrels = "".join(f"{fruit}\t{fruit}\t1\n" for fruit in FRUIT) + "plum\tx\t0\n"
    folder = write_beir(tmp_path / "set", documents, queries, qrels, "train")
    out = tmp_path / "out.jsonl"
    mine_negatives(data=str(folder), out=out, negatives=1, relative_margin=None, max_tokens=64)
    rows = {row["query"]: row for row in read(out)}
    for fruit in ("melon", "pear", "fig"):  # never a text equal to the query
        assert rows[fruit]["neg"] == ["melon, pear or fig?"]
    assert rows["plum"]["neg"] == ["melon, pear or fig?"]  # judged irrelevant in the data, not mined
    assert rows["mango"] == {"query": "mango", "pos": [PAIRS[7][1]], "neg": []}
    said = capsys.readouterr().out
    assert f"{out}: 3 negatives for 10 distinct queries, from 12 texts" in said
    assert "7 queries have fewer than 1 negatives, 7 of them have none" in said


def test_random_negatives_depend_on_the_seed_alone(tmp_path, cache, embedder):
    data = str(write_pairs(tmp_path / "data.jsonl", PAIRS))
    found = []
    for seed in (1, 1, 2):
        out = tmp_path / f"{len(found)}.jsonl"
        mine_negatives(
            data=data,
            out=out,
            by=str(embedder),
            sampling="random",
            seed=seed,
            rank_max=9,
            negatives=2,
            relative_margin=None,
            max_tokens=64,
            device="cpu",
        )
        found.append([row["neg"] for row in read(out)])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"negatives": 0}, "negatives is 0"),
        ({"rank_min": 3, "rank_max": 7}, "rank_min is 3 and rank_max 7; expected 5 ranks"),
        ({"relative_margin": 1.5}, "relative_margin is 1.5"),
        ({"by": "no-such-model"}, "no-such-model"),
        ({"by": str(Path(__file__).parent)}, "is not a model that sentence-transformers can read"),
        ({"seed": -1}, "seed is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"out": Path("no-such-folder/out.jsonl")}, "no-such-folder is not a folder"),
        ({"query_column": "question"}, "no column question"),
        ({"out": Path("negatives.json")}, "negatives.json is not the name of a .jsonl file"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, said):
    data = str(write_pairs(tmp_path / "data.jsonl", PAIRS))
    with pytest.raises(InputError, match=said):
        mine_negatives(**{"data": data, "out": tmp_path / "out.jsonl", **settings})
    assert not (tmp_path / "out.jsonl").exists()


def test_texts_without_positives_and_existing_output_files_are_refused(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a text"}\n')
    with pytest.raises(InputError, match="has texts without a positive"):
        mine_negatives(data=str(data), out=tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="already exists"):
        mine_negatives(data=str(data), out=data)
