"""Tuning settings: the measured values equal those of an encoder and an index with these settings."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embed import Encoder
from embed.network.config import EmbedderConfig, Pooling
from gpt_core.common.errors import InputError
from index.evaluation.collection import Collection
from index.evaluation.tune_embedder import encode_all, lexical_scores, tune_embedder
from index.index import Index
from tests.tiny_models import TEXTS, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("tune") / "model", "qwen3")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    words = ["wheat", "steam", "coral", "tax", "quartet", "granite", "harbour", "lantern"]
    rows = [
        {"query": f"what of {w}?", "positive": f"A page on {w}, long and dull. " * (i + 1)}
        for i, w in enumerate(words)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_forward_equals_an_encoder_for_each_pooling(model):
    plain = Encoder.from_pretrained(model)
    poolings = [
        Pooling("mean", layer, skip, unit)
        for layer in (0, 1, 3)
        for skip in (False, True)
        for unit in (False, True)
    ]
    found = encode_all(plain, ["", *TEXTS], poolings)
    for pooling in poolings:
        encoder = Encoder(plain.model, plain.tokenizer, EmbedderConfig(pooling))
        np.testing.assert_allclose(found[pooling], encoder.encode(["", *TEXTS], max_tokens=256), atol=1e-6)
    assert not any(module._forward_hooks for module in plain.model.modules())  # all hooks were removed


def test_lexical_scores_equal_the_indexs(pairs, tmp_path):
    collection = Collection.from_pairs(pairs)
    scores = lexical_scores(collection)
    with Index.create(tmp_path / "index", dimension=1) as index:
        index.add(collection.documents.values(), np.ones((len(collection.documents), 1)))
        hit = index.search("what of coral?", 1, "lexical")[0]
    assert hit.doc_id == "d2"
    assert scores[2].argmax() == 2
    assert scores[2, 2] == pytest.approx(hit.score)
    assert np.count_nonzero(scores[2]) == 1


def test_writes_the_settings_whose_printed_mean_is_highest(model, pairs, tmp_path, capsys):
    out = tmp_path / "embedder.json"
    tune_embedder(data=[str(pairs)], out=str(out), embedder=str(model), layers=[0, 2], prompts=["", "\n"])
    chosen = EmbedderConfig.from_json(out.read_text())
    table = capsys.readouterr().out
    means = {
        line[:62].strip(): float(line[62:69])
        for line in table.splitlines()
        if line[62:69].strip().startswith(("0.", "1."))
    }
    dense = {words: mean for words, mean in means.items() if words.startswith("layer")}
    fused = {words: mean for words, mean in means.items() if words.startswith(("rrf", "tm2c2", "z"))}
    assert dense[next(iter(dense))] == max(dense.values())
    assert next(iter(dense)).startswith(f"layer {chosen.pooling.layer}, mean")
    assert chosen.corpus_map in next(iter(dense))
    assert len(fused) == 19
    assert chosen.fusion.kind in max(fused, key=fused.__getitem__)


def test_without_layers_only_the_fusion_is_chosen(model, pairs, tmp_path):
    own = EmbedderConfig(Pooling("mean", 1), query_prompt="Q: ", max_tokens=64)
    (model / "embedder.json").write_text(own.to_json())
    try:
        out = tmp_path / "embedder.json"
        tune_embedder(data=[str(pairs)], out=str(out), embedder=str(model))
    finally:
        (model / "embedder.json").unlink()
    chosen = EmbedderConfig.from_json(out.read_text())
    assert replace(chosen, fusion=own.fusion) == own


def test_never_tunes_on_a_test_split(model, tmp_path):
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d", "text": "x"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "x"}\n')
    (folder / "qrels" / "test.tsv").write_text("q\td\t1\n")
    with pytest.raises(InputError, match=r"train\.tsv is missing"):
        tune_embedder(data=[str(folder)], out=str(tmp_path / "out.json"), embedder=str(model), layers=[0])
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": []}, "is empty"),
        ({"layers": None, "prompts": ["\n"]}, "needs --layers"),
        ({"out": "no/such/folder/x.json"}, "folder does not exist"),
    ],
)
def test_bad_arguments_are_refused(model, pairs, tmp_path, arguments, message):
    good = {"data": [str(pairs)], "out": str(tmp_path / "x.json"), "embedder": str(model), "layers": [0]}
    with pytest.raises(InputError, match=message):
        tune_embedder(**{**good, **arguments})


def test_a_layer_beyond_the_model_is_refused(model, pairs, tmp_path):
    with pytest.raises(InputError, match="layer 4 is not"):
        tune_embedder(data=[str(pairs)], out=str(tmp_path / "x.json"), embedder=str(model), layers=[0, 4])
