"""Embedders that start from nothing: a table of token vectors, and blocks above it that at first change nothing."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.processors import TemplateProcessing

from embed.encoding.encoder import Encoder
from embed.encoding.peer_model import Teacher
from embed.formats.export import export_model
from embed.formats.folder import load_network, save_embedder
from embed.formats.settings import load_settings
from embed.network.config import Pooling
from embed.network.network import Dense, Network
from embed.network.pooling import pool
from embed.training.batches import Collator
from embed.training.config import TrainEmbedderConfig
from embed.training.data import open_data
from embed.training.start import build, place_table, shape
from embed.training.teacher_start import start_table
from embed.training.train import train_embedder
from gpt_core.common.errors import InputError
from gpt_core.data.train_tokenizer import train_tokenizer
from gpt_core.hardware.device import Numerics
from gpt_core.hub.locate import resolve
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.optim import build_optimizers
from tests.embed.training.test_train import write_pairs

TEXTS = ["the cats sat", "The  dog is 12 years old, and it barks at 猫和狗", "", "a", "word " * 700]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A table's training over made-up words, with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("start")
    write_pairs(folder / "pairs.jsonl", 80)
    train_tokenizer(out=str(folder / "tokenizer"), vocab_size=400, input=[str(folder / "pairs.jsonl")],
                    column="positive", uncased=True)  # fmt: skip
    return TrainEmbedderConfig(
        init_from="scratch", tokenizer=str(folder / "tokenizer"), n_layer=0, n_embd=24,
        data=(str(folder / "pairs.jsonl"),), out_dir=str(folder / "table"), batch_size=16, max_iters=12,
        eval_interval=6,
        warmup_iters=1, learning_rate=1e-2, weight_decay=0.0, threads=1, device="cpu", dtype="float32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(config):
    """The figures before and after the training of the table."""
    train_embedder(replace(config, max_iters=12))
    return config.out_dir


def blocks_above(config, trained, **keys):
    """A configuration that puts two blocks above the trained table."""
    return replace(
        config,
        **{"init_from": trained, "tokenizer": None, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 32,
           "out_dir": trained + "-blocks", "max_tokens": 1024, **keys},
    )  # fmt: skip


def test_a_table_is_trained_from_nothing_and_opens_in_sentence_transformers(config, trained):
    encoder = Encoder.from_pretrained(trained)
    assert encoder.network.is_table
    peer = SentenceTransformer(str(encoder.folder), device="cpu")
    assert isinstance(peer[0], StaticEmbedding)
    ours, theirs = encoder.encode(TEXTS), peer.encode(TEXTS)
    assert ours == pytest.approx(theirs, abs=1e-5)  # the long text is not truncated, the empty one is zero
    assert np.concatenate([encoder.encode([text]) for text in TEXTS]) == pytest.approx(ours, abs=1e-5)
    words = [f"{word}?" for word in ("abcde", "bcdef")]
    assert encoder.encode(words) == pytest.approx(encoder.encode([word.upper() for word in words]), abs=1e-6)


def test_the_fast_mean_of_a_table_equals_looking_up_and_pooling(config):
    network, *_ = build(config)
    network = network.double()
    ids = torch.randint(network.gpt.config.vocab_size, (5, 7))
    mask = torch.arange(7) < torch.tensor([7, 3, 0, 1, 5])[:, None]
    fast = network.pooled(ids, mask)
    slow = pool(network.gpt.wte(ids), ids, mask, network.pooling)
    assert torch.allclose(fast, slow, atol=1e-12)
    weight = torch.randn_like(fast)
    gradients = [torch.autograd.grad((x * weight).sum(), network.gpt.wte.weight)[0] for x in (fast, slow)]
    assert torch.allclose(*gradients, atol=1e-12)


def test_a_table_with_sublinear_pooling_keeps_it_and_its_map_also_below_blocks(config, trained, tmp_path):
    network, settings, tokenizer, _ = build(replace(config, pooling="sublinear", corpus_map="half-whiten"))
    assert network.is_table
    assert (network.pooling.mode, settings.corpus_map) == ("sublinear", "half-whiten")
    save_embedder(tmp_path / "table", network, settings, tokenizer)
    again, settings, *_ = build(blocks_above(config, str(tmp_path / "table"), tokenizer=None))
    assert (again.pooling, settings.corpus_map) == (Pooling("sublinear"), "half-whiten")
    ids = torch.randint(network.gpt.config.vocab_size, (5, 7))
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 1, 5])[:, None]
    assert (network(ids, mask) * again(ids, mask)).sum(dim=1).min() > 0.9999  # the blocks change nothing yet
    changed, settings, *_ = build(replace(config, init_from=trained, tokenizer=None, pooling="sublinear"))
    assert (changed.pooling.mode, settings.corpus_map) == ("sublinear", "none")


def test_the_tables_start_follows_the_teacher_and_the_tokens_frequencies(config, tmp_path):
    """From a teacher that is itself a table of the same tokens, less its mean; frequent tokens are short."""
    words = [
        a + b
        for a in ("bread", "stone", "river", "cloud")
        for b in ("light", "house", "works", "field", "mill")
    ]
    (tmp_path / "words.jsonl").write_text(
        "".join(json.dumps({"text": f"{word} {word}"}) + "\n" for word in words)
    )
    train_tokenizer(
        out=str(tmp_path / "tokenizer"), vocab_size=400, input=[str(tmp_path / "words.jsonl")], uncased=True
    )
    config = replace(config, tokenizer=str(tmp_path / "tokenizer"))
    rows = Tokenizer.from_pretrained(config.tokenizer)
    weights = torch.randn(rows.vocab_size, 24, generator=torch.Generator().manual_seed(0))
    backend = RustTokenizer.from_file(f"{config.tokenizer}/tokenizer.json")
    peer = SentenceTransformer(
        modules=[StaticEmbedding(backend, embedding_weights=weights), Normalize()], device="cpu"
    )
    peer.save(str(tmp_path / "teacher"), create_model_card=False)
    network, settings, tokenizer, _ = build(config)
    sets, _ = open_data(config)
    collate = Collator(Encoder(network.gpt, tokenizer, settings).tokenize, {"query": "", "document": ""}, 1)
    start_table(network, tokenizer, sets, collate, Teacher(str(tmp_path / "teacher")))
    table = network.gpt.wte.weight.detach()
    own = peer.encode([rows.decode([i]).strip() or " " for i in range(rows.vocab_size)])
    own -= own.mean(axis=0)
    names = [rows.decode([i]).strip() for i in range(rows.vocab_size)]

    def differences(tokens):
        for i, j in pairwise(tokens):
            expected = float(own[i] @ own[j] / np.linalg.norm(own[i]) / np.linalg.norm(own[j]))
            yield float(torch.cosine_similarity(table[i], table[j], dim=0)) - expected

    long = [i for i, name in enumerate(names) if len(name) >= 3]
    assert len(long) > 20
    assert max(map(abs, differences(long))) < 0.02
    # Tokens of one or two characters are random.
    short = [i for i, name in enumerate(names) if len(name) < 3]
    assert np.std(list(differences(short))) > 0.2
    frequent, rare = rows.encode("the")[-1], rows.encode("猫")[-1]
    ratio = np.linalg.norm(own[rare]) / np.linalg.norm(own[frequent])
    assert float(table[rare].norm() / table[frequent].norm()) > 20 * ratio


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_above_a_table_change_nothing_at_first(config, trained, tmp_path, dtype):
    network, settings, tokenizer, _ = build(blocks_above(config, trained))
    save_embedder(tmp_path / "start", network, settings, tokenizer)
    table = Encoder.from_pretrained(trained)
    encoder = Encoder.from_pretrained(tmp_path / "start", dtype=dtype)
    texts = [text for text in TEXTS if text]
    cosines = (encoder.encode(texts) * table.encode(texts)).sum(axis=1)
    assert cosines == pytest.approx(1, abs=1e-5 if dtype == "float32" else 1e-3)
    export_model(str(tmp_path / "exported"), model=str(tmp_path / "start"), to="sentence-transformers")
    peer = SentenceTransformer(str(tmp_path / "exported"), device="cpu")
    assert (peer.encode(texts) * table.encode(texts)).sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_one_dimension_more_than_the_table_is_enough(config, trained):
    network, *_ = build(blocks_above(config, trained, n_embd=25, n_head=1, n_kv_head=1, head_dim=16))
    ids, mask = torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        assert float((network(ids, mask) * load_network(resolve(trained))(ids, mask)).sum()) == pytest.approx(
            1, abs=1e-5
        )


def test_the_first_block_above_a_table_multiplies_neighbouring_tokens(config):
    """The gate of its MLP depends on the previous token only, the other factor on the own token only."""
    torch.manual_seed(0)
    sizes = shape(replace(config, n_layer=1, n_head=1, head_dim=64), 40, 256 + 32)
    gpt, seen = GPT(sizes, init="zero"), {}
    with torch.no_grad():
        place_table(gpt, Dense(256 + 32, 256, bias=False), torch.randn(40, 256))
    block = gpt.blocks[0]
    block.mlp.gate.register_forward_hook(lambda module, inputs, output: seen.update(gate=output))
    block.mlp.up.register_forward_hook(lambda module, inputs, output: seen.update(up=output))
    ids = torch.randint(40, (1, 60))
    other = ids.clone()
    other[0, 30] = (ids[0, 30] + 1) % 40

    def factors(ids):
        with torch.no_grad():
            gpt(ids, logits=False)
        return seen["gate"][0], seen["up"][0]

    changes = [(a - b).norm(dim=1) for a, b in zip(factors(ids), factors(other), strict=True)]
    gate, up = (change / change.max() for change in changes)
    assert gate.argmax() == 31
    assert up.argmax() == 30
    assert sorted(gate)[-2] < 0.1
    assert sorted(up)[-2] < 0.01


def test_blocks_above_a_table_get_a_gradient_and_their_training_resumes(config, trained):
    above = blocks_above(config, trained, max_iters=4, eval_interval=2, max_tokens=64, learning_rate=1e-3)
    first, *_ = build(above)
    train_embedder(above)
    encoder = Encoder.from_pretrained(above.out_dir)
    assert encoder.model.config.model_type == "qwen3"
    for name, weight in encoder.model.state_dict().items():
        assert not torch.equal(weight, first.gpt.state_dict()[name]), name
    figures = train_embedder(replace(above, max_iters=6))
    assert figures["nDCG@10"] > 0.1


def test_each_part_has_its_own_learning_rate(config, trained):
    rates = {"learning_rate": 1e-3, "embedding_learning_rate": 2e-3, "norm_learning_rate": 3e-3,
             "dense_learning_rate": 4e-3}  # fmt: skip
    above = blocks_above(config, trained, **rates)
    network, *_ = build(above)
    model = torch.nn.ModuleDict({"network": network})
    names = {id(p): name for name, p in model.named_parameters()}
    (adamw,) = build_optimizers(model, above, Numerics())
    found = {names[id(p)]: group["lr"] for group in adamw.param_groups for p in group["params"]}
    assert found.keys() == set(names.values())
    for name, rate in found.items():
        part = (
            "dense"
            if ".dense." in name
            else "embedding"
            if "wte" in name
            else "norm"
            if "norm" in name
            else ""
        )
        assert rate == rates[f"{part}_learning_rate" if part else "learning_rate"], name
    one_rate = replace(above, embedding_learning_rate=None, norm_learning_rate=None, dense_learning_rate=None)
    (same,) = build_optimizers(model, one_rate, Numerics())
    assert {group["lr"] for group in same.param_groups} == {1e-3}


def test_a_static_embedder_of_other_tools_is_read(config, tmp_path):
    """With a tokenizer that adds special tokens, which `StaticEmbedding` does not use, and half-precision weights."""
    backend = RustTokenizer.from_file(f"{config.tokenizer}/tokenizer.json")
    backend.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    table = StaticEmbedding(
        backend, embedding_weights=torch.randn(backend.get_vocab_size(), 8).half().float()
    )
    peer = SentenceTransformer(modules=[table], device="cpu")
    peer.save(str(tmp_path), create_model_card=False)
    encoder = Encoder.from_pretrained(tmp_path)
    assert encoder.encode(TEXTS) == pytest.approx(peer.encode(TEXTS, normalize_embeddings=True), abs=1e-5)
    assert encoder.count_tokens(["a"]) == [len(encoder.tokenizer.encode("a"))]


def test_a_network_from_nothing_begins_with_random_vectors(config):
    network, settings, *_ = build(replace(config, n_layer=1, n_head=2, dimension=8))
    assert isinstance(network, Network)
    assert (network.gpt.config.n_layer, network.dimension, settings.max_tokens) == (1, 8, 256)
    assert isinstance(network.gpt, GPT)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokenizer": None}, "init_from is scratch; give tokenizer"),
        ({"n_embd": None}, "init_from is scratch; give tokenizer"),
        ({"n_layer": -1}, "n_layer is -1; expected at least 0"),
        ({"table_start": "teacher"}, "table_start is teacher, but teacher is not set"),
        ({"matryoshka": (64,)}, "matryoshka contains 64, but the vectors have 24"),
        ({"pooling": "lasttoken"}, "pooling is lasttoken, but a table's vectors are means"),
        ({"dimension": 16}, "dimension is 16, but a table's vectors have its own dimensions"),
    ],
)
def test_bad_starts_are_refused(config, keys, message):
    with pytest.raises(InputError, match=message):
        build(replace(config, **keys))


def test_blocks_need_more_dimensions_than_the_table(config, trained):
    with pytest.raises(InputError, match=r"n_embd is 24, but blocks above .* give n_embd 88"):
        build(blocks_above(config, trained, n_embd=24))
    network, settings, tokenizer, _ = build(blocks_above(config, trained))
    save_embedder(trained + "-two", network, settings, tokenizer)
    with pytest.raises(InputError, match="pooling is lasttoken, but a table's vectors are means"):
        build(blocks_above(config, trained, pooling="lasttoken"))
    with pytest.raises(InputError, match=r"n_layer is 0, but .* has blocks"):
        build(replace(config, init_from=trained + "-two", n_layer=0))


def test_a_damaged_table_is_refused(trained, tmp_path):
    network, settings = (
        load_network(Encoder.from_pretrained(trained).folder),
        load_settings(Encoder.from_pretrained(trained).folder),
    )
    save_embedder(tmp_path, network, settings, Encoder.from_pretrained(trained).tokenizer)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=r"model\.safetensors has no table"):
        Encoder.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        Encoder.from_pretrained(tmp_path)
