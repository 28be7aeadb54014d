"""Embedder settings: precedence of their sources, and refused values."""

import json
from pathlib import Path

import pytest

from embed.formats.settings import load_settings
from embed.network.config import EmbedderConfig, Fusion, Pooling
from gpt_core.common.errors import InputError


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def write_sentence_transformers(folder: Path, pooling: dict, *more: str) -> None:
    kinds = ["models.Transformer", "models.Pooling", *more]
    paths = ["", "1_Pooling", *more]
    modules = [{"type": f"sentence_transformers.{k}", "path": p} for k, p in zip(kinds, paths, strict=True)]
    write(folder, "modules.json", modules)
    write(folder, "1_Pooling/config.json", pooling)
    write(folder, "config_sentence_transformers.json", {"prompts": {"query": "q: ", "document": None}})


def test_round_trip():
    config = EmbedderConfig(
        Pooling("mean", 2, True, True), "q: ", "文: ", 256, "whiten", 128, Fusion("z", 0.7, 10)
    )
    assert EmbedderConfig.from_json(config.to_json()) == config
    assert EmbedderConfig.from_json("{}") == EmbedderConfig()


def test_precedence_is_embedder_json_sentence_transformers_known_model_default(tmp_path, capsys):
    folder = tmp_path / "smollm2-135m-instruct"
    write_sentence_transformers(folder, {"pooling_mode": "mean"})
    write(folder, "embedder.json", EmbedderConfig(max_tokens=77).to_json())
    assert load_settings(folder).max_tokens == 77

    (folder / "embedder.json").unlink()
    assert load_settings(folder) == EmbedderConfig(Pooling("mean"), query_prompt="q: ")

    (folder / "modules.json").unlink()
    assert load_settings(folder).corpus_map != "none"
    assert capsys.readouterr().err == ""

    assert load_settings(folder.rename(tmp_path / "another")) == EmbedderConfig()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "weighted mean of its last layer" in said


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode": "lasttoken"},
        {"pooling_mode": ["lasttoken"]},
        {"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True, "include_prompt": True},
    ],
)
def test_reads_every_form_of_pooling_mode(tmp_path, pooling):
    write_sentence_transformers(tmp_path, {"word_embedding_dimension": 8, **pooling}, "2_Normalize")
    write(tmp_path, "modules.json", json.loads((tmp_path / "modules.json").read_text())[:2])
    assert load_settings(tmp_path).pooling == Pooling("lasttoken")


@pytest.mark.parametrize("flag", ["weightedmean", "mean"])
def test_reads_old_flags(tmp_path, flag):
    write_sentence_transformers(
        tmp_path, {f"pooling_mode_{flag}_tokens": True, "pooling_mode_max_tokens": False}
    )
    assert load_settings(tmp_path).pooling == Pooling(flag)


@pytest.mark.parametrize(
    ("pooling", "more", "said"),
    [
        ({"pooling_mode": "cls"}, (), "pooling_mode.*'cls'.*weightedmean"),
        ({"pooling_mode": ["mean", "max"]}, (), "mean\\+max"),
        ({"pooling_mode_max_tokens": True}, (), "'max'"),
        ({"pooling_mode": "mean", "include_prompt": False}, (), "include_prompt"),
        ({"pooling_mode": "mean"}, ("LSTM",), "module 'LSTM'"),
    ],
)
def test_unsupported_pooling_and_modules_are_refused(tmp_path, pooling, more, said):
    write_sentence_transformers(tmp_path, pooling, *more)
    with pytest.raises(InputError, match=said):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object"),
        ('{"poling": {}}', "unknown embedder setting 'poling'.*pooling"),
        ('{"pooling": {"modes": "mean"}}', "'modes'"),
        ('{"pooling": "mean"}', "pooling is 'mean'"),
        ('{"pooling": {"mode": "max"}}', "'max'.*weightedmean, mean, lasttoken"),
        ('{"pooling": {"layer": -1}}', "layer is -1"),
        ('{"pooling": {"layer": "2"}}', "layer is '2'"),
        ('{"pooling": {"skip_first": 1}}', "skip_first is 1"),
        ('{"fusion": {"kind": "sum"}}', "'sum'"),
        ('{"fusion": {"dense_weight": 1.5}}', "1.5"),
        ('{"fusion": {"k": 0}}', "fusion.k is 0"),
        ('{"corpus_map": "pca"}', "'pca'"),
        ('{"map_components": 0}', "map_components is 0"),
        ('{"max_tokens": true}', "max_tokens is True"),
        ('{"query_prompt": null}', "query_prompt is None"),
    ],
)
def test_bad_settings_give_one_line_errors(tmp_path, text, said):
    write(tmp_path, "embedder.json", text)
    with pytest.raises(InputError, match=said) as caught:
        load_settings(tmp_path)
    assert str(tmp_path / "embedder.json") in str(caught.value)
    assert "\n" not in str(caught.value)
