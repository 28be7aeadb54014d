"""The encoder compared with sentence-transformers, and its own guarantees."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from embed import Encoder
from embed.encoding.encoder import TOKENS_PER_BATCH
from embed.network.config import EmbedderConfig, Pooling
from embed.network.quantize import fit_ranges, quantize_embeddings
from gpt_core.common.errors import InputError
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from tests.tiny_models import GRAPHS, TEXTS, reference_model, save_model


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return Encoder.from_pretrained(save_model(tmp_path / "model", "qwen3"))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("mode", ["weightedmean", "mean", "lasttoken"])
def test_roles_and_vectors_equal_sentence_transformers(tmp_path, graph, mode):
    folder = save_model(tmp_path / "model", graph, eos_after_text=mode == "lasttoken")
    reference = reference_model(folder, mode)
    prompts = {"query_prompt": "search for: ", "document_prompt": "text: "}
    settings = EmbedderConfig(Pooling(mode), **prompts)
    (folder / "embedder.json").write_text(settings.to_json())
    ours = Encoder.from_pretrained(folder)
    for mine, theirs in (
        (ours.encode_query(TEXTS), reference.encode_query(TEXTS)),
        (ours.encode_document(TEXTS), reference.encode_document(TEXTS)),
        (ours.encode(TEXTS), reference.encode(TEXTS)),
    ):
        assert (mine * theirs).sum(axis=1).min() > 0.9999
        np.testing.assert_allclose(mine, theirs, atol=2e-6)
    assert np.abs(ours.encode_query(TEXTS) - ours.encode_document(TEXTS)).max() > 1e-3


def test_reads_a_folder_that_sentence_transformers_saved(tmp_path):
    reference = reference_model(save_model(tmp_path / "model", "qwen3"), "weightedmean", max_seq_length=24)
    reference.save(str(tmp_path / "st"), create_model_card=False)
    ours = Encoder.from_pretrained(tmp_path / "st")
    assert ours.max_tokens == 24
    np.testing.assert_allclose(ours.encode_query(TEXTS), reference.encode_query(TEXTS), atol=2e-6)
    assert ours.n_truncated > 0


def test_truncation_keeps_the_special_tokens_and_is_counted(tmp_path):
    folder = save_model(tmp_path / "model", "qwen3", eos_after_text=True)
    (folder / "embedder.json").write_text(EmbedderConfig(Pooling("lasttoken"), max_tokens=8).to_json())
    ours = Encoder.from_pretrained(folder)
    reference = reference_model(folder, "lasttoken", max_seq_length=8)
    np.testing.assert_allclose(ours.encode(TEXTS), reference.encode(TEXTS), atol=2e-6)
    n_long = sum(len(ids) > 7 for ids in ours.tokenizer.encode_batch(TEXTS))
    assert ours.n_truncated == n_long > 0
    ours.encode("fits")
    assert ours.n_truncated == n_long
    with pytest.raises(InputError, match="special tokens"):
        ours.encode("x", max_tokens=1)


def test_a_vector_does_not_depend_on_its_batch(encoder, monkeypatch):
    texts = [text * n for n in (1, 2, 5) for text in TEXTS]
    together = encoder.encode_document(texts)
    alone = np.vstack([encoder.encode_document(text) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 64)
    np.testing.assert_allclose(encoder.encode_document(texts), together, atol=1e-6)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_lower_layer_equals_the_hidden_state_of_transformers(tmp_path, layer):
    from transformers import AutoModel

    folder = save_model(tmp_path / "model", "qwen3")
    (folder / "embedder.json").write_text(EmbedderConfig(Pooling("mean", layer=layer)).to_json())
    ours = Encoder.from_pretrained(folder)
    reference = AutoModel.from_pretrained(folder)
    if layer == 3:  # transformers' last hidden state includes the final norm, ours at a given layer does not
        reference.norm = torch.nn.Identity()
    for text, vector in zip(TEXTS, ours.encode(TEXTS), strict=True):
        ids = torch.tensor([ours.tokenizer.encode(text)])
        with torch.no_grad():
            state = reference(ids, output_hidden_states=True).hidden_states[layer][0].mean(dim=0)
        np.testing.assert_allclose(vector, (state / state.norm()).numpy(), atol=2e-6)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    n_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.n_elements = max(self.n_elements, tensor.numel())
        return out


def test_64_texts_of_256_tokens_never_allocate_logits():
    config = GPTConfig(
        vocab_size=50000, block_size=256, n_layer=2, n_head=2, n_kv_head=2, n_embd=16, head_dim=8
    )
    tokenizer = Tokenizer.from_pretrained("gpt2")
    encoder = Encoder(GPT(config), tokenizer)
    text = " the" * 256
    assert len(tokenizer.encode(text)) == 256
    with LargestTensor() as largest:
        vectors = encoder.encode([text] * 64)
    assert vectors.shape == (64, 16)
    assert largest.n_elements >= TOKENS_PER_BATCH["cpu"] * 16  # the hidden states were recorded
    assert largest.n_elements < TOKENS_PER_BATCH["cpu"] * config.vocab_size // 4  # no tensor near (B, T, V)


def test_an_empty_text_gives_zeros_and_does_not_change_the_others(encoder):
    vectors = encoder.encode(["", TEXTS[0], ""])
    assert not vectors[0].any()
    assert not vectors[2].any()
    np.testing.assert_allclose(vectors[1], encoder.encode(TEXTS[0])[0], atol=1e-6)
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_non_texts_and_bad_arguments_are_refused(encoder):
    for texts, said in (
        ([1], "Text 0 is a int"),
        (["a", None], "Text 1 is a NoneType"),
        (3, "texts is a int"),
    ):
        with pytest.raises(InputError, match=said):
            encoder.encode(texts)
        with pytest.raises(InputError, match=said):
            encoder.encode_with_states(texts)
    with pytest.raises(InputError, match="max_tokens is 0"):
        encoder.encode("a", max_tokens=0)
    with pytest.raises(InputError, match="extra_tokens is -1"):
        encoder.encode_with_states(["a"], extra_tokens=-1)
    with pytest.raises(InputError, match="dtype is 'int3'"):
        Encoder(encoder.model, encoder.tokenizer, dtype="int3")
    with pytest.raises(InputError, match=r"shapes \(1, 32\) and \(2, 31\)"):
        encoder.similarity(np.ones(32), np.ones((2, 31)))
    assert encoder.similarity(np.array([[100, 100]], dtype=np.int8), np.ones((1, 2))) == pytest.approx(1)
    np.testing.assert_array_equal(encoder.encode_with_states("ab")[0], encoder.encode_with_states(["ab"])[0])
    np.testing.assert_array_equal(encoder.encode(text for text in TEXTS), encoder.encode(TEXTS))


def test_the_fingerprint_changes_with_everything_that_affects_a_vector(tmp_path):
    folder = save_model(tmp_path / "model", "qwen3")
    first = Encoder.from_pretrained(folder)
    assert Encoder.from_pretrained(folder).fingerprint == first.fingerprint
    seen = {first.fingerprint}
    for config in (
        EmbedderConfig(Pooling("mean")),
        EmbedderConfig(Pooling(layer=1)),
        EmbedderConfig(query_prompt="q "),
        EmbedderConfig(document_prompt="q "),
        EmbedderConfig(max_tokens=99),
    ):
        seen.add(
            Encoder(first.model, first.tokenizer, config, weights_sha256=first._weights_sha256).fingerprint
        )
    weights = Encoder(first.model, first.tokenizer).fingerprint
    with torch.no_grad():
        first.model.blocks[0].mlp.up.weight[0, 0] += 1
    seen |= {weights, Encoder(first.model, first.tokenizer).fingerprint}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))  # the same weights
    seen.add(Encoder.from_pretrained(folder).fingerprint)
    assert len(seen) == 9


def test_a_layer_beyond_the_model_is_refused(encoder):
    with pytest.raises(InputError, match=r"layer 4.*3 layers"):
        Encoder(encoder.model, encoder.tokenizer, EmbedderConfig(Pooling(layer=4)))


def test_prompt_names_truncation_and_precisions_equal_sentence_transformers(tmp_path):
    folder = save_model(tmp_path / "model", "qwen3")
    settings = EmbedderConfig(Pooling("mean"), query_prompt="search for: ", document_prompt="text: ")
    (folder / "embedder.json").write_text(settings.to_json())
    theirs, ours = reference_model(folder, "mean"), Encoder.from_pretrained(folder)
    for name in ("query", "document"):
        expected = theirs.encode(TEXTS, prompt_name=name, truncate_dim=12, normalize_embeddings=True)
        np.testing.assert_allclose(ours.encode(TEXTS, name, truncate_dim=12), expected, atol=2e-6)
        shorter = Encoder.from_pretrained(folder, truncate_dim=12)
        assert shorter.dimension == 12
        np.testing.assert_allclose(getattr(shorter, f"encode_{name}")(TEXTS), expected, atol=2e-6)
    np.testing.assert_allclose(ours.encode(TEXTS, prompt="? "), theirs.encode(TEXTS, prompt="? "), atol=2e-6)
    assert shorter.fingerprint != ours.fingerprint
    vectors = ours.encode_document(TEXTS)
    for encoder in (ours, shorter):
        np.testing.assert_array_equal(encoder.encode_document(TEXTS, truncate_dim=32), vectors)
    np.testing.assert_allclose(ours.similarity(vectors, 3 * vectors[:2]), vectors @ vectors[:2].T, atol=1e-6)
    np.testing.assert_allclose(
        ours.similarity(vectors, vectors), theirs.similarity(vectors, vectors).numpy(), atol=1e-6
    )
    ranges = fit_ranges(vectors)
    for precision in ("int8", "uint8", "binary", "ubinary"):
        expected = quantize_embeddings(ours.encode_query(TEXTS), precision, ranges)
        np.testing.assert_array_equal(ours.encode_query(TEXTS, precision=precision, ranges=ranges), expected)
    for options, said in (
        ({"prompt_name": "passage"}, "'passage'.*query and document"),
        ({"truncate_dim": 33}, "33.*1 to 32"),
        ({"truncate_dim": 0}, "0; expected 1"),
        ({"precision": "int4"}, "int4"),
    ):
        with pytest.raises(InputError, match=said):
            ours.encode(TEXTS, **options)


def test_the_fingerprint_is_unchanged_since_before_dense_layers_and_windows(encoder):
    graph = {
        "vocab_size": 320, "block_size": 512, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "head_dim": 8,
        "n_inner": 48, "position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "attn_bias": False, "mlp_bias": False,
        "qk_norm": True, "tie_embeddings": True, "rope_theta": 10000.0, "norm_eps": 1e-6, "dropout": 0.0,
        "bos_id": None, "eos_id": None, "pad_id": None,
    }  # fmt: skip
    pooling = {"mode": "weightedmean", "layer": None, "skip_first": False, "unit_tokens": False}
    decides = [encoder._weights_sha256, graph, encoder.tokenizer.fingerprint, pooling, ["", ""], 512]
    assert encoder.fingerprint == hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def test_bfloat16_is_close_and_its_vectors_are_float32(encoder):
    rounded = Encoder(encoder.model, encoder.tokenizer, dtype="bfloat16").encode(TEXTS)
    exact = encoder.encode(TEXTS)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05
    np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("graph", GRAPHS)
def test_generation_continues_from_the_cache_of_encoded_documents(tmp_path, graph, monkeypatch):
    folder = save_model(tmp_path / "model", graph)
    (folder / "embedder.json").write_text(EmbedderConfig(Pooling("mean"), document_prompt="text: ").to_json())
    encoder = Encoder.from_pretrained(folder)
    monkeypatch.setitem(TOKENS_PER_BATCH, "cpu", 128)  # several batches, whose slots are not contiguous
    texts = [*TEXTS, TEXTS[0] * 2]
    vectors, cache = encoder.encode_with_states(texts, "document", extra_tokens=8)
    np.testing.assert_allclose(vectors, encoder.encode_document(texts), atol=1e-6)
    question = encoder.tokenizer.encode(" So what?")[:8]
    model = encoder.model
    with torch.inference_mode():
        for slot, text in enumerate(texts):
            ids = encoder.tokenizer.encode("text: " + text)
            assert cache.lengths[slot] == len(ids)
            whole = model(torch.tensor([ids + question])).logits[0, len(ids) :]
            continued = model(torch.tensor([question]), cache=cache.rows([slot])).logits[0]
            torch.testing.assert_close(continued, whole, atol=1e-4, rtol=0)
            assert (continued.argmax(-1) == whole.argmax(-1)).all()
    with pytest.raises(InputError, match="Text 1 has no tokens"):
        encoder.encode_with_states(["a", ""])
    lower = Encoder(model, encoder.tokenizer, EmbedderConfig(Pooling(layer=2, final_norm=True)))
    with pytest.raises(InputError, match="layer 2 of 3"):
        lower.encode_with_states(TEXTS)
    top = Encoder(model, encoder.tokenizer, EmbedderConfig(Pooling("mean", layer=3, final_norm=True)))
    vectors, _ = top.encode_with_states(texts, prompt="text: ")
    np.testing.assert_allclose(vectors, encoder.encode_document(texts), atol=1e-6)


@pytest.mark.network
def test_smollm2_has_tuned_default_settings(smollm2):
    encoder = Encoder.from_pretrained(smollm2)
    assert encoder.config.pooling.layer is not None
    assert encoder.config.corpus_map != "none"
    questions, passages = encoder.encode_query(TEXTS[:2]), encoder.encode_document(TEXTS)
    assert (questions @ passages.T).argmax(axis=1).tolist() == [0, 1]
