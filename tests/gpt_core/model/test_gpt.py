"""The GPT's contract: padding, packing, cache, layers, loss. Parity with transformers is in test_families.py."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from gpt_core import GPT, Cache, GPTConfig, InputError
from gpt_core.model import gpt as model_module
from gpt_core.model.masks import alibi_slopes

QWEN3 = GPTConfig(
    vocab_size=97, block_size=48, n_layer=3, n_head=4, n_kv_head=2, n_embd=32, head_dim=8, n_inner=48
)
GPT2 = GPTConfig.gpt2(vocab_size=97, block_size=48, n_layer=3, n_head=4, n_embd=32)
ALIBI = replace(QWEN3, position="alibi", n_head=6, n_kv_head=3, window=9, window_layers=(1,))
NEO = replace(GPT2, attn_bias="output", scale_attention=False, window=5, window_layers=(0, 2))
SHAPES = pytest.mark.parametrize("config", [QWEN3, GPT2], ids=["qwen3", "gpt2"])


def make(config, dtype=torch.float64):
    torch.manual_seed(0)
    model = GPT(config).to(dtype).eval()
    with torch.no_grad():
        for p in model.parameters():  # larger than the initialisation, so that errors show
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.fixture(scope="module", params=[QWEN3, GPT2, NEO, ALIBI], ids=["qwen3", "gpt2", "neo", "alibi"])
def model(request):
    return make(request.param)


def text(n, seed=0):
    return torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_padding_on_either_side_does_not_change_the_logits(model):
    ids = text(17)
    alone = model(ids[None]).logits[0]
    for left, right in ((9, 0), (0, 9), (4, 5)):
        row = F.pad(ids, (left, right), value=3)
        segments = F.pad(torch.zeros(17, dtype=torch.long), (left, right), value=-1)
        other = text(26, seed=1)
        out = model(torch.stack([row, other]), segments=torch.stack([segments, torch.zeros(26).long()]))
        torch.testing.assert_close(out.logits[0, left : left + 17], alone, rtol=0, atol=1e-10)
        torch.testing.assert_close(out.logits[1], model(other[None]).logits[0], rtol=0, atol=1e-10)
        assert out.logits.isfinite().all()


@torch.no_grad()
def test_packed_texts_do_not_attend_to_each_other(model):
    a, b = text(11), text(19, seed=1)
    segments = torch.tensor([[0] * 11 + [1] * 19])
    packed = model(torch.cat([a, b])[None], segments=segments).logits[0]
    torch.testing.assert_close(packed[:11], model(a[None]).logits[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(packed[11:], model(b[None]).logits[0], rtol=0, atol=1e-10)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_logits_with_a_cache_equal_one_pass_for_any_chunks(model, data):
    """Rows of different lengths, in any slots, split into any chunks, batched with rows at other positions."""
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    slots = data.draw(st.permutations(range(5)))[: len(lengths)]
    texts = [text(n, seed=i) for i, n in enumerate(lengths)]
    cache = Cache(model.config, 5, dtype=torch.float64)
    got = [[] for _ in texts]
    fed = [0] * len(texts)
    with torch.no_grad():
        while any(f < n for f, n in zip(fed, lengths, strict=True)):
            open_rows = [i for i in range(len(texts)) if fed[i] < lengths[i]]
            rows = data.draw(st.lists(st.sampled_from(open_rows), min_size=1, unique=True))
            n_new = [data.draw(st.integers(1, lengths[i] - fed[i])) for i in rows]
            ids = torch.stack(
                [
                    F.pad(texts[i][fed[i] : fed[i] + n], (0, max(n_new) - n))
                    for i, n in zip(rows, n_new, strict=True)
                ]
            )
            logits = model(ids, cache=cache.rows([slots[i] for i in rows], n_new)).logits
            for b, (i, n) in enumerate(zip(rows, n_new, strict=True)):
                got[i].append(logits[b, :n])
                fed[i] += n
        for i, ids in enumerate(texts):
            torch.testing.assert_close(torch.cat(got[i]), model(ids[None]).logits[0], rtol=0, atol=1e-10)
            assert cache.lengths[slots[i]] == lengths[i]


def test_input_longer_than_its_slot_is_refused_and_leaves_the_slot_unchanged(model):
    cache = Cache(model.config, 1, dtype=torch.float64, length=8)
    model(text(6)[None], cache=cache.rows([0]))
    with pytest.raises(ValueError, match="cannot hold 9"):
        model(text(3)[None], cache=cache.rows([0]))
    assert cache.lengths.tolist() == [6]
    cache.k[:, 0, :, 3] = torch.nan
    cache.free(0)
    assert cache.lengths.tolist() == [0]
    assert model(text(3)[None], cache=cache.rows([0])).logits.isfinite().all()


@torch.no_grad()
def test_layers_and_hidden_states(model):
    ids = text(12)[None]
    full = model(ids)
    torch.testing.assert_close(full.logits, model.logits(full.hidden))
    last = model(ids, layer=3)
    assert last.logits is None
    torch.testing.assert_close(model.norm(last.hidden), full.hidden)
    assert not torch.equal(model(ids, layer=1).hidden, last.hidden)
    assert model(ids, logits=False).logits is None
    with pytest.raises(ValueError, match="layer is 4"):
        model(ids, layer=4)


@pytest.mark.parametrize("layer", [1, 2])
def test_the_first_blocks_alone_give_their_hidden_states(model, layer):
    """Also where only a block that is removed has a window."""
    ids = torch.randint(0, 64, (2, 20))
    wanted = model(ids, logits=False, layer=layer).hidden
    first = copy.deepcopy(model)
    first.keep_blocks(layer)
    assert first.config.n_layer == len(first.blocks) == layer
    torch.testing.assert_close(first(ids, logits=False, layer=layer).hidden, wanted)
    windows = replace(NEO, window_layers=(1,))
    assert windows.with_blocks(1).window is None
    assert windows.with_blocks(2).window == NEO.window


@SHAPES
def test_loss_and_gradients_do_not_depend_on_the_chunk_size(config, monkeypatch):
    model = make(config)
    ids, targets = torch.stack([text(20), text(20, 1)]), torch.stack([text(20, 2), text(20, 3)])
    targets[0, 5:9] = -100
    results = []
    for chunk in (2**25, 97 * 7):
        monkeypatch.setattr(model_module, "LOSS_CHUNK", chunk)
        model.zero_grad()
        out = model(ids, targets=targets, logits=False)
        assert out.logits is None
        out.loss_sum.backward()
        results.append((out.loss_sum.detach(), [p.grad.clone() for p in model.parameters()]))
    expected = F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert out.n_targets == 36
    for loss, _ in results:
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@SHAPES
def test_without_targets_the_loss_is_zero(config):
    out = make(config)(text(5)[None], targets=torch.full((1, 5), -100))
    assert out.loss_sum == 0
    assert out.n_targets == 0


@torch.no_grad()
def test_alibi_equals_the_papers_formula():
    config = replace(ALIBI, n_layer=1, window=None, window_layers=())
    model = make(config)
    attn, ids = model.blocks[0].attn, text(20)[None]
    x = model.blocks[0].norm1(model.wte(ids))
    q, k, v = (part(x).view(1, 20, -1, 8).transpose(1, 2) for part in (attn.q, attn.k, attn.v))
    q, k, v = attn.q_norm(q), attn.k_norm(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    out = torch.zeros(1, 6, 20, 8, dtype=torch.float64)
    slopes = [
        2**-2,
        2**-4,
        2**-6,
        2**-8,
        2**-1,
        2**-3,
    ]  # the slopes of 4 heads, then every second slope of 8 heads
    for head, slope in enumerate(slopes):
        for i in range(20):
            logits = torch.stack(
                [q[0, head, i] @ k[0, head, j] / 8**0.5 - slope * (i - j) for j in range(i + 1)]
            )
            out[0, head, i] = logits.softmax(0) @ v[0, head, : i + 1]
    expected = model.wte(ids) + attn.o(out.transpose(1, 2).flatten(2))
    expected = expected + model.blocks[0].mlp(model.blocks[0].norm2(expected))
    torch.testing.assert_close(model(ids, layer=1).hidden, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_head", [1, 2, 3, 8, 12, 15, 20])
def test_alibi_slopes_are_those_of_bloom(n_head):
    expected = build_alibi_tensor(torch.ones(1, 2), n_head, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(n_head), expected)


def test_initialisation_is_gpt2s():
    torch.manual_seed(0)
    model = GPT(GPTConfig.gpt2(vocab_size=500, n_layer=8, n_head=4, n_embd=128, block_size=64))
    weights = dict(model.named_parameters())
    assert weights["wte.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["blocks.3.attn.q.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["blocks.3.mlp.down.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert weights["blocks.3.attn.o.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert weights["blocks.3.attn.o.bias"].abs().max() == 0
    loss = model(torch.randint(0, 500, (4, 64)), targets=torch.randint(0, 500, (4, 64)))
    assert (loss.loss_sum / loss.n_targets).item() == pytest.approx(torch.tensor(500.0).log().item(), abs=0.5)


def test_invalid_config_values_are_refused():
    with pytest.raises(InputError, match="n_kv_head is 5; it must divide n_head, which is 12"):
        GPTConfig(n_kv_head=5)
    with pytest.raises(InputError, match="head_dim is 63"):
        GPTConfig(head_dim=63)
    for values, message in (
        ({"n_layer": -1}, "n_layer is -1; expected a whole number from 0 to 4096"),
        ({"block_size": True}, "block_size is True; expected a whole number from 1 to 16777216"),
        ({"n_inner": 10**30}, "n_inner is 10{30}; expected a whole number"),
        ({"position": "rotary"}, "position is 'rotary'; expected 'rope' or 'learned' or 'alibi'"),
        ({"mlp": "relu"}, "mlp is 'relu'; expected 'swiglu'"),
        ({"attn_bias": "all"}, "attn_bias is 'all'; expected True or False or 'output'"),
        ({"norm_eps": -1e-6}, "norm_eps is -1e-06; expected a number from 0 to 1"),
        ({"rope_theta": 0.0}, r"rope_theta is 0\.0; expected a number above 1"),
    ):
        with pytest.raises(InputError, match=message):
            GPTConfig(**values)
    with pytest.raises(InputError, match="multiple of n_head"):
        GPTConfig.gpt2(n_embd=100, n_head=12)
    for window in ({"window": 4}, {"window_layers": (0,)}, {"window": 0, "window_layers": (0,)}):
        with pytest.raises(InputError, match="expected both, the window of at least 1 token, or neither"):
            GPTConfig(**window)
    for layers in ((1, 0), (12,), (0, 0)):
        with pytest.raises(InputError, match="expected ascending layers from 0 to 11"):
            GPTConfig(window=4, window_layers=layers)
    with pytest.raises(InputError, match="No Hugging Face family"):
        _ = GPTConfig(norm="layernorm").model_type


@torch.no_grad()
def test_too_many_tokens_and_none_are_one_sentence(model):
    alibi = model.config.position == "alibi"
    for n in (48, 49, 60):
        ids = text(n)[None]
        segments = torch.arange(n)[None] // 20  # each within the context
        assert model(ids, segments=segments).logits.isfinite().all()
        for places in ({}, {"positions": torch.arange(n)}, {"segments": torch.zeros(1, n, dtype=torch.long)}):
            if n <= 48 or alibi:
                assert model(ids, **places).logits.isfinite().all()
            else:
                with pytest.raises(InputError, match=rf"has {n} tokens; .* \(block_size\) holds 48"):
                    model(ids, **places)
    for shape in ((1, 0), (0, 4), (0, 0)):
        with pytest.raises(InputError, match=r"shape \(\d, \d\); expected at least one row of one token"):
            model(torch.zeros(shape, dtype=torch.long))


def test_sizes_that_are_not_given_follow_from_the_others():
    def sizes(config):
        return config.n_kv_head, config.head_dim, config.n_inner

    assert sizes(GPTConfig()) == (12, 64, 2048)
    assert sizes(GPTConfig(n_head=4, n_embd=128)) == (4, 32, 320)
    assert sizes(GPTConfig(n_head=4, n_embd=16)) == (4, 4, 64)
    assert sizes(GPTConfig(n_head=4, n_embd=128, n_kv_head=2, head_dim=48, n_inner=7)) == (2, 48, 7)
    assert sizes(GPTConfig(n_head=5, n_embd=128, head_dim=48)) == (5, 48, 320)
    assert (
        GPT(GPTConfig(vocab_size=9, block_size=8, n_layer=1, n_head=4, n_embd=32))(text(5)[None] % 9)
        .logits.isfinite()
        .all()
    )
    with pytest.raises(
        InputError, match="n_embd is 130; expected a multiple of n_head, which is 4, or a head_dim"
    ):
        GPTConfig(n_head=4, n_embd=130)
    with pytest.raises(InputError, match="n_head is 0; expected a whole number"):
        GPTConfig(n_head=0)
