"""The export command: an embedder's language model in all formats, and refused inputs."""

import json
import resource
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

from embed import Encoder
from embed.encoding.peer_model import Teacher
from embed.formats.export import export_model
from embed.formats.folder import has_own_code, load_network, save_embedder
from embed.formats.static import table_shape
from embed.network.config import TABLE, TABLE_POOLINGS, EmbedderConfig, Pooling
from embed.network.network import Network
from gpt_core import GPT, InputError, Tokenizer
from gpt_core.formats.card import read_card
from tests.tiny_models import GRAPHS, TEXTS, reference_model, save_model


@pytest.fixture
def embedder(tmp_path):
    """An embedder with prompts, pooling at a lower layer, and a licence."""
    folder = save_model(tmp_path / "model", "qwen3")
    config = EmbedderConfig(Pooling("mean", layer=2, final_norm=True), query_prompt="search: ")
    network = load_network(folder, config)
    (tmp_path / "embedder").mkdir()
    (tmp_path / "embedder" / "LICENSE").write_text("Yours.\n")
    save_embedder(tmp_path / "embedder", network, config, Tokenizer.from_pretrained(folder))
    return tmp_path / "embedder"


@torch.no_grad()
def test_an_embedders_language_model_is_exported_to_hf_and_gguf(embedder, tmp_path, capsys):
    ids = torch.tensor([Tokenizer.from_pretrained(embedder).encode(TEXTS[0])])
    ours = GPT.from_pretrained(embedder)(ids).logits  # of all three blocks
    export_model(str(tmp_path / "hf"), model=str(embedder), to="hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert (theirs(ids).logits - ours).abs().max() < 1e-4
    assert not list(tmp_path.glob("hf/*_Pooling"))
    export_model(str(tmp_path / "gguf"), model=str(embedder), to="gguf", dtype="q8_0")
    assert [p.name for p in tmp_path.glob("gguf/*.gguf")] == ["gguf-Q8_0.gguf"]
    assert (GPT.from_pretrained(tmp_path / "gguf")(ids).logits - ours).abs().max() < 0.05
    said = capsys.readouterr()
    assert said.out.count("\n") == 2
    for name in ("hf", "gguf"):
        card = read_card(tmp_path / name)
        assert card.licence_text == "Yours.\n"
        assert "Vectors" in read_card(embedder).sections
        assert "Vectors" not in card.sections


def test_a_sentence_transformers_folder_has_a_card_and_keeps_its_vectors(embedder, tmp_path):
    export_model(str(tmp_path / "out"), model=str(embedder), to="sentence-transformers")
    card = read_card(tmp_path / "out")
    assert card.head["library_name"] == "sentence-transformers"
    assert "| pooling | mean |" in card.sections["Vectors"]
    assert '| query prompt | `"search: "` |' in card.sections["Vectors"]
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    ours = Encoder.from_pretrained(embedder).encode_query(TEXTS)
    assert (ours * theirs.encode_query(TEXTS)).sum(axis=1).min() > 0.9999
    theirs.save(str(tmp_path / "saved"))  # this reads and writes the card, too
    assert (Encoder.from_pretrained(tmp_path / "saved").encode_query(TEXTS) * ours).sum(axis=1).min() > 0.9999


@pytest.mark.parametrize(
    ("kind", "dtype"), [("blocks", "bfloat16"), ("table", "float16"), ("table", "bfloat16")]
)
def test_16_bits_on_disk_are_float32_in_memory_and_the_same_vectors(embedder, tmp_path, kind, dtype):
    if kind == "table":
        tokenizer = Tokenizer.from_pretrained(embedder)
        network = Network(GPT(table_shape(tokenizer.vocab_size, 48)), TABLE)
        embedder = tmp_path / "table"
        save_embedder(embedder, network, EmbedderConfig(TABLE), tokenizer)
    export_model(str(tmp_path / "full"), model=str(embedder), to="sentence-transformers")
    export_model(str(tmp_path / "half"), model=str(embedder), to="sentence-transformers", dtype="bfloat16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.52 * sizes[1]
    ours = Encoder.from_pretrained(tmp_path / "half").encode_query(TEXTS)
    peer = SentenceTransformer(str(tmp_path / "half"), device="cpu")
    if kind == "blocks":
        assert {p.dtype for p in peer.parameters()} == {torch.float32}
    theirs = peer.encode_query(TEXTS).astype(np.float32)
    assert np.linalg.norm(theirs, axis=1) == pytest.approx(1, abs=3e-3)
    assert (ours * theirs / np.linalg.norm(theirs, axis=1, keepdims=True)).sum(axis=1).min() > 0.9999
    assert (ours * Encoder.from_pretrained(embedder).encode_query(TEXTS)).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("kind", ["blocks", "table"])
def test_sublinear_pooling_is_exported_with_its_source(embedder, tmp_path, kind):
    tokenizer = Tokenizer.from_pretrained(embedder)
    if kind == "table":
        network = Network(GPT(table_shape(tokenizer.vocab_size, 48)), TABLE_POOLINGS["sublinear"])
    else:
        network = Network(GPT.from_pretrained(embedder), Pooling("sublinear"))
    config = EmbedderConfig(network.pooling, query_prompt="search: ")
    save_embedder(tmp_path / "saved", network, config, tokenizer)
    export_model(str(tmp_path / "out"), model=str(tmp_path / "saved"), to="sentence-transformers")
    texts = [*TEXTS, "a a a a b", "a b", ""]
    ours = Encoder.from_pretrained(tmp_path / "out").encode_query(texts)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu", trust_remote_code=True)
    assert ours == pytest.approx(theirs.encode_query(texts), abs=1e-5)
    repeated, once, *_ = ours[len(TEXTS) :]
    assert repeated @ once < 0.999
    # a peer on a CPU runs in bfloat16 where that is faster
    assert Teacher(str(tmp_path / "out")).encode(texts, "query") == pytest.approx(ours, abs=2e-2)
    if kind == "blocks":  # transformers would run what an auto_map names
        path = tmp_path / "out" / "config.json"
        config_json = path.read_text()
        path.write_text(json.dumps(json.loads(config_json) | {"auto_map": {"AutoModel": "other.Model"}}))
        assert not has_own_code(tmp_path / "out")
        path.write_text(config_json)
    assert has_own_code(tmp_path / "out")
    (tmp_path / "out" / "embedder.json").unlink()  # the files of sentence-transformers say the same
    assert Encoder.from_pretrained(tmp_path / "out").encode_query(texts) == pytest.approx(ours, abs=1e-6)
    with (tmp_path / "out" / "sublinear.py").open("a") as file:
        file.write("raise SystemExit\n")
    with pytest.raises(InputError, match="not a model that sentence-transformers can read"):
        Teacher(str(tmp_path / "out"))  # other code than ours is not run


def test_exports_the_model_of_a_sentence_transformers_folder(tmp_path):
    folder = save_model(tmp_path / "model", "gpt2")
    reference_model(folder, "mean").save(str(tmp_path / "theirs"))
    export_model(str(tmp_path / "out"), model=str(tmp_path / "theirs"), to="gguf")
    assert GPT.from_pretrained(tmp_path / "out").config.n_layer == 3


@pytest.mark.parametrize(
    ("to", "dtype", "said"),
    [
        ("hf", "q8_0", "--to hf has no dtype q8_0; expected float32, bfloat16 or float16"),
        ("gguf", "bfloat16", "--to gguf has no dtype bfloat16; expected float16 or q8_0"),
        ("sentence-transformers", "float16", "has no dtype float16; expected float32 or bfloat16"),
    ],
)
def test_unsupported_dtypes_and_existing_folders_are_refused(to, dtype, said, tmp_path):
    folder = save_model(tmp_path / "model", "qwen3")
    with pytest.raises(InputError, match=said):
        export_model(str(tmp_path / "out"), model=str(folder), to=to, dtype=dtype)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(
        InputError, match="used already exists and is not empty; remove it or name another folder"
    ):
        export_model(str(tmp_path / "used"), model=str(folder), to=to)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "used"]


@pytest.mark.parametrize("to", ["hf", "gguf", "sentence-transformers"])
def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(to, embedder, tmp_path):
    GPT(replace(GRAPHS["qwen3"], vocab_size=256)).save_pretrained(embedder)
    with pytest.raises(InputError, match="embedder has a tokenizer of 320 tokens and a model of 256"):
        export_model(str(tmp_path / "out"), model=str(embedder), to=to)
    assert not (tmp_path / "out").exists()


def test_alibi_is_refused_and_a_full_disk_leaves_nothing(tmp_path):
    folder = save_model(tmp_path / "model", "qwen3")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
        with pytest.raises(OSError, match=r"model\.safetensors could not be written"):
            export_model(str(tmp_path / "out"), model=str(folder), to="sentence-transformers")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    GPT(replace(GRAPHS["qwen3"], position="alibi", qk_norm=False)).save_pretrained(folder)
    with pytest.raises(
        InputError, match="has ALiBi positions, which no export format supports; use the model"
    ):
        export_model(str(tmp_path / "out"), model=str(folder), to="sentence-transformers")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
