"""Embedder folders: our code and sentence-transformers compute the same vectors from each other's folders."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense as TheirDense
from sentence_transformers.sentence_transformer.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling

from embed.encoding.encoder import Encoder
from embed.formats.export import export_model, truncated
from embed.formats.folder import load_network, save_embedder
from embed.network.config import EmbedderConfig, Fusion, Pooling
from embed.network.network import Dense, Network
from gpt_core.common.errors import InputError
from gpt_core.hub.locate import gguf_in
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests.tiny_models import GRAPHS, TEXTS, save_model

SHAPES = GRAPHS | {
    "llama": replace(GRAPHS["qwen3"], qk_norm=False, tie_embeddings=False),
    "gpt_neo": replace(
        GRAPHS["gpt2"], attn_bias="output", scale_attention=False, window=6, window_layers=(1,)
    ),
}
PROMPTS = {"query_prompt": "search for: ", "document_prompt": "text: "}
QWEN_QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


def save_shape(folder: Path, shape: str, **options: bool) -> Path:
    save_model(folder, "qwen3", **options)
    if shape != "qwen3":
        torch.manual_seed(1)
        GPT(SHAPES[shape]).save_pretrained(folder)
    return folder


def assert_same_vectors(folder: Path, reference: SentenceTransformer | None = None) -> Encoder:
    """Assert that our query, document and plain vectors equal sentence-transformers' for any batch size."""
    theirs = reference or SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    ours = Encoder.from_pretrained(folder)
    texts = [text * n for n in (1, 3) for text in TEXTS]
    for role in ("encode_query", "encode_document", "encode"):
        mine = getattr(ours, role)(texts)
        for batch_size in (1, 4, 32):
            other = getattr(theirs, role)(texts, batch_size=batch_size, normalize_embeddings=True)
            assert mine.shape == other.shape
            assert (mine * other).sum(axis=1).min() > 0.9999
            np.testing.assert_allclose(mine, other, atol=3e-6)
    return ours


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["weightedmean", "mean", "lasttoken"])
def test_saved_embedders_open_in_sentence_transformers(tmp_path, shape, mode):
    folder = save_shape(tmp_path / "model", shape, eos_after_text=mode == "lasttoken")
    torch.manual_seed(2)
    dense = [Dense(32, 24, activation="tanh"), Dense(24, 16, bias=False)] if mode != "mean" else []
    config = EmbedderConfig(Pooling(mode), max_tokens=24, fusion=Fusion("z", 0.3), **PROMPTS)
    network = Network(GPT.from_pretrained(folder), config.pooling, dense).eval()
    save_embedder(tmp_path / "saved", network, config, Tokenizer.from_pretrained(folder))
    ours = assert_same_vectors(tmp_path / "saved")
    assert ours.config == config
    assert ours.n_truncated > 0
    assert ours.dimension == (16 if dense else 32)
    in_memory = Encoder(network.gpt, ours.tokenizer, config, dense=dense)
    np.testing.assert_array_equal(in_memory.encode_query(TEXTS), ours.encode_query(TEXTS))
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert theirs.tokenizer.padding_side == "right"
    assert theirs.tokenizer.pad_token == "<pad>"
    assert theirs.max_seq_length == 24
    assert theirs.similarity_fn_name == "cosine"


@pytest.mark.parametrize("graph", GRAPHS)
def test_opens_sentence_transformers_folders_with_dense_layers(tmp_path, graph):
    torch.manual_seed(0)
    modules = [
        Transformer(str(save_model(tmp_path / "model", graph)), max_seq_length=40),
        TheirPooling(32, "weightedmean"),
        TheirDense(32, 48),  # tanh
        TheirDense(48, 20, bias=False, activation_function=torch.nn.Identity()),
        Normalize(),
    ]
    theirs = SentenceTransformer(modules=modules, prompts={"query": "q: ", "document": "d: "}, device="cpu")
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)
    ours = assert_same_vectors(tmp_path / "theirs", theirs)
    assert ours.max_tokens == 40
    network = load_network(tmp_path / "theirs")
    save_embedder(tmp_path / "again", network, ours.config, ours.tokenizer)
    assert_same_vectors(tmp_path / "again", theirs)


def test_opens_a_folder_like_qwen3_embedding(tmp_path):
    folder = save_model(tmp_path / "model", "qwen3", eos_after_text=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"padding_side": "left", "model_max_length": 131072})
    )
    modules = [Transformer(str(folder)), TheirPooling(32, "lasttoken"), Normalize()]
    prompts = {"query": QWEN_QUERY, "document": ""}
    theirs = SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)
    assert theirs.tokenizer.padding_side == "left"
    ours = assert_same_vectors(tmp_path / "theirs", theirs)
    assert ours.config.query_prompt == QWEN_QUERY
    save_embedder(tmp_path / "right", load_network(tmp_path / "theirs"), ours.config, ours.tokenizer)
    assert_same_vectors(tmp_path / "right", theirs)
    assert SentenceTransformer(str(tmp_path / "right"), device="cpu").tokenizer.padding_side == "right"


def test_opens_a_folder_in_sgpt_layout(tmp_path):
    """GPT-Neo without a language-model head, pickled with its causal masks; no Normalize module."""
    folder = save_shape(tmp_path / "sgpt", "gpt_neo")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    pickled = {name.removeprefix("transformer."): w for name, w in weights.items()}
    for layer in range(3):
        pickled[f"h.{layer}.attn.attention.bias"] = torch.ones(1, 1, 512, 512, dtype=torch.uint8).tril()
        pickled[f"h.{layer}.attn.attention.masked_bias"] = torch.tensor(-1e9)
    torch.save(pickled, folder / "pytorch_model.bin")
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 32}
        | {f"pooling_mode_{mode}": mode == "weightedmean_tokens" for mode in modes},
        "sentence_bert_config.json": {"max_seq_length": 75, "do_lower_case": False},
        "config_sentence_transformers.json": {"__version__": {"sentence_transformers": "2.1.0"}},
        "config.json": json.loads((folder / "config.json").read_text())
        | {"architectures": ["GPTNeoModel"], "attention_layers": ["global", "local", "global"]},
    }
    for name, values in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    ours = assert_same_vectors(folder)
    assert ours.config.pooling == Pooling("weightedmean")
    assert ours.max_tokens == 75
    assert ours.model.config.model_type == "gpt_neo"
    other = torch.load(folder / "pytorch_model.bin")
    other["wte.weight"][0] += 1
    torch.save(other, folder / "pytorch_model.bin")
    assert Encoder.from_pretrained(folder).fingerprint != ours.fingerprint


def test_opens_an_old_folder_with_the_model_in_a_subfolder(tmp_path):
    """As versions 0.4 to 2.2 wrote it: a folder for the transformer, flags for the pooling, pickled dense weights."""
    folder = tmp_path / "old"
    save_model(folder / "0_Transformer", "gpt2")
    torch.manual_seed(0)
    dense = torch.nn.Linear(32, 8)
    files = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(
                (("0_Transformer", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
            )
        ],
        "0_Transformer/sentence_bert_config.json": {"max_seq_length": 30, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
        "2_Dense/config.json": {
            "in_features": 32,
            "out_features": 8,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        },
    }
    for name, values in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    torch.save(
        {f"linear.{k}": v for k, v in dense.state_dict().items()}, folder / "2_Dense/pytorch_model.bin"
    )
    ours = assert_same_vectors(folder)
    assert (ours.max_tokens, ours.dimension) == (30, 8)
    with torch.no_grad():
        dense.weight[0, 0] += 1
    seen = ours.fingerprint
    torch.save(
        {f"linear.{k}": v for k, v in dense.state_dict().items()}, folder / "2_Dense/pytorch_model.bin"
    )
    assert Encoder.from_pretrained(folder).fingerprint != seen
    torch.save({"linear.weight": dense}, folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(InputError, match=r"refers to torch\.nn\.modules\.linear\.Linear.* never executed"):
        Encoder.from_pretrained(folder)
    (folder / "2_Dense/pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"2_Dense has neither model\.safetensors nor pytorch_model\.bin"):
        Encoder.from_pretrained(folder)


def write_changed(folder: Path, name: str, **changes: object) -> None:
    values = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    (folder / name).write_text(json.dumps(values | changes))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.GELU"},
            "GELU.*Identity, Tanh",
        ),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual"),
        ("2_Dense/config.json", {"in_features": "x"}, "does not describe a dense layer"),
        ("2_Dense/config.json", {"out_features": 9}, "weights in .* do not match"),
        ("2_Dense/config.json", {"in_features": 31}, "weights in .* do not match"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "token_embeddings"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path, name, changes, said):
    folder = saved_with_dense(tmp_path)
    write_changed(folder, name, **changes)
    with pytest.raises(InputError, match=said) as caught:
        Encoder.from_pretrained(folder)
    assert "\n" not in str(caught.value).partition(": ")[0]


def saved_with_dense(tmp_path: Path) -> Path:
    folder = save_model(tmp_path / "model", "qwen3")
    network = Network(GPT.from_pretrained(folder), Pooling("mean"), [Dense(32, 16)])
    save_embedder(
        tmp_path / "saved", network, EmbedderConfig(Pooling("mean")), Tokenizer.from_pretrained(folder)
    )
    (tmp_path / "saved" / "embedder.json").unlink()  # leaves only the files of sentence-transformers
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("modules.json", b"\xff\xfe", "modules.json is not UTF-8"),
        ("embedder.json", b"\xff\xfe", "embedder.json is not UTF-8"),
        ("modules.json", b'["Pooling"]', "lists 'Pooling'; expected objects"),
        ("1_Pooling/config.json", b'{"pooling_mode": ["mean", 3]}', "mean\\+3"),
        ("config_sentence_transformers.json", b'{"prompts": ["q: "]}', "expected an object of prompts"),
        ("sentence_bert_config.json", b'{"max_seq_length": "many"}', "max_tokens is 'many'"),
    ],
)
def test_malformed_files_are_refused(tmp_path, name, content, said):
    folder = saved_with_dense(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        Encoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["Transformer", "Pooling", "LSTM"], "module 'LSTM'"),
        (["Transformer", "Pooling", "LayerNorm", "Normalize"], "module 'LayerNorm'"),
        (["Router", "Pooling"], "module 'Router'"),
        (["Transformer", "Pooling", "Normalize", "Dense"], "Transformer, Pooling, Normalize, Dense"),
        (["Transformer", "Dense", "Pooling"], "Transformer, Dense"),
        (["Transformer"], "no Pooling"),
        (["Pooling"], "has the modules Pooling"),
    ],
)
def test_unsupported_modules_are_refused(tmp_path, kinds, said):
    folder = saved_with_dense(tmp_path)
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_Normalize"}
    modules = [
        {"path": paths.get(kind, ""), "type": f"sentence_transformers.models.{kind}"} for kind in kinds
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=said):
        Encoder.from_pretrained(folder)


def test_dot_product_similarity_of_unnormalised_vectors_is_refused(tmp_path):
    folder = saved_with_dense(tmp_path)
    write_changed(folder, "config_sentence_transformers.json", similarity_fn_name="dot")
    Encoder.from_pretrained(folder)  # dot products of unit vectors equal cosines
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))
    with pytest.raises(InputError, match="'dot'"):
        Encoder.from_pretrained(folder)


def test_a_passage_prompt_is_ignored_with_a_warning(tmp_path, capsys):
    folder = saved_with_dense(tmp_path)
    write_changed(folder, "config_sentence_transformers.json", prompts={"query": "q: ", "passage": "p: "})
    assert_same_vectors(folder)
    assert "'passage' is not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    "pooling",
    [
        Pooling("mean", layer=1),
        Pooling("mean", layer=3),
        Pooling("mean", layer=2, final_norm=True),
        Pooling("mean", skip_first=True),
        Pooling("mean", unit_tokens=True),
    ],
)
def test_pooling_unsupported_by_sentence_transformers_is_saved_without_modules_json(tmp_path, pooling):
    folder = save_model(tmp_path / "model", "qwen3")
    config = EmbedderConfig(pooling)
    network = Network(GPT.from_pretrained(folder), pooling, [Dense(32, 8)]).eval()
    tokenizer = Tokenizer.from_pretrained(folder)
    save_embedder(
        tmp_path / "saved", with_pooling(network, Pooling("mean")), EmbedderConfig(Pooling("mean")), tokenizer
    )
    save_embedder(tmp_path / "saved", network, config, tokenizer)
    assert not (tmp_path / "saved" / "modules.json").exists()  # the earlier one was removed, too
    again = Encoder.from_pretrained(tmp_path / "saved")
    here = Encoder(network.gpt, tokenizer, config, dense=network.dense_layers)
    np.testing.assert_array_equal(again.encode(TEXTS), here.encode(TEXTS))


def with_pooling(network: Network, pooling: Pooling) -> Network:
    return Network(network.gpt, pooling, network.dense_layers)


def test_saves_the_weights_that_it_is_given(tmp_path):
    folder = save_model(tmp_path / "model", "gpt2")
    network = Network(GPT.from_pretrained(folder), Pooling(), [Dense(32, 8)])
    weights = {name: tensor + 1 for name, tensor in network.state_dict().items()}
    save_embedder(tmp_path / "saved", network, EmbedderConfig(), Tokenizer.from_pretrained(folder), weights)
    for name, tensor in load_network(tmp_path / "saved").state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)


def test_a_tokenizer_without_a_pad_token_reuses_a_special_token(tmp_path):
    """GPT-2's has none: its end-of-text token is used, and padding does not affect the vectors."""
    torch.manual_seed(0)
    config = GPTConfig.gpt2(block_size=64, n_layer=1, n_head=2, n_embd=32)
    network = Network(GPT(config), Pooling())
    save_embedder(tmp_path / "saved", network, EmbedderConfig(), Tokenizer.from_pretrained("gpt2"))
    assert_same_vectors(tmp_path / "saved")
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert theirs.tokenizer.pad_token == "<|endoftext|>"


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path):
    tokenizer = Tokenizer.from_characters("abc")
    network = Network(GPT(GPTConfig(vocab_size=3, n_layer=1, n_head=1, n_kv_head=1, n_embd=8)), Pooling())
    with pytest.raises(InputError, match="pad_token"):
        save_embedder(tmp_path / "saved", network, EmbedderConfig(), tokenizer)


def test_a_plain_gpt_exports_as_the_weighted_mean_with_a_one_line_notice(tmp_path, capsys):
    folder = save_model(tmp_path / "model", "gpt2")
    export_model(str(tmp_path / "out"), model=str(folder), to="sentence-transformers")
    assert capsys.readouterr().err.count("weighted mean of its last layer") == 1
    ours = assert_same_vectors(tmp_path / "out")
    assert ours.config == EmbedderConfig()
    with pytest.raises(InputError, match="already exists and is not empty"):
        export_model(str(tmp_path / "out"), model=str(folder), to="sentence-transformers")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_lower_layer_with_the_final_norm_exports_as_a_model_of_that_many_layers(tmp_path, shape):
    folder = save_shape(tmp_path / "model", shape)
    config = EmbedderConfig(Pooling("mean", layer=2, final_norm=True), corpus_map="whiten", **PROMPTS)
    (folder / "embedder.json").write_text(config.to_json())
    whole = Encoder.from_pretrained(folder)
    export_model(str(tmp_path / "out"), model=str(folder), to="sentence-transformers")
    exported = assert_same_vectors(tmp_path / "out")
    assert exported.model.config.n_layer == 2
    np.testing.assert_allclose(exported.encode_query(TEXTS), whole.encode_query(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "said"),
    [
        (Pooling(layer=2), "block 2 of 3 are pooled without the final norm"),
        (Pooling(layer=0, final_norm=True), "block 0 of 3"),
        (Pooling(skip_first=True), "skip_first"),
        (Pooling(unit_tokens=True), "unit_tokens"),
    ],
)
def test_export_refuses_pooling_that_would_change_the_vectors(tmp_path, pooling, said):
    folder = save_model(tmp_path / "model", "qwen3")
    (folder / "embedder.json").write_text(EmbedderConfig(pooling).to_json())
    with pytest.raises(InputError, match=said):
        export_model(str(tmp_path / "out"), model=str(folder), to="sentence-transformers")
    assert not (tmp_path / "out").exists()


def test_the_training_state_does_not_change_the_fingerprint(tmp_path):
    folder = save_model(tmp_path / "step-3", "qwen3")
    alone = Encoder.from_pretrained(folder).fingerprint
    for name in ("optimizer", "training"):
        shutil.copy(folder / "model.safetensors", folder / f"{name}.safetensors")
    assert Encoder.from_pretrained(folder).fingerprint == alone


@pytest.mark.network
def test_two_layers_of_smollm2_from_its_gguf_file_export(tmp_path, smollm2):
    file = gguf_in(smollm2)
    assert file is not None
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / file.name).symlink_to(file)
    settings = EmbedderConfig(Pooling(layer=2, final_norm=True), query_prompt="q: ")
    (tmp_path / "own" / "embedder.json").write_text(settings.to_json())
    encoder = Encoder.from_pretrained(tmp_path / "own")
    ours = encoder.encode_query(TEXTS)
    save_embedder(tmp_path / "out", *truncated(encoder.network, encoder.config), encoder.tokenizer)
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode_query(TEXTS)
    assert (ours * theirs).sum(axis=1).min() > 0.9999
