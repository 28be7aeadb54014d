"""The CPU kernels for linear layers and attention, compared with PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.hardware import onednn
from gpt_core.hardware.capability import Capability
from gpt_core.model import attention, cpu_attention
from gpt_core.model.cache import Cache
from gpt_core.model.gpt import GPT
from tests.tiny_models import GRAPHS

HEADS = {"n_rows": st.integers(1, 3), "n_kv_head": st.integers(1, 3), "group": st.integers(1, 3)}


@settings(max_examples=40)
@given(**HEADS, n_tokens=st.integers(1, 150), n_before=st.integers(0, 80))
def test_block_attention_equals_causal_attention(n_rows, n_kv_head, group, n_tokens, n_before):
    torch.manual_seed(n_tokens)
    q = torch.randn(n_rows, n_tokens, n_kv_head * group, 8, dtype=torch.float64).transpose(1, 2)
    k, v = torch.randn(2, n_rows, n_before + n_tokens, n_kv_head, 8, dtype=torch.float64).transpose(2, 3)
    seen = torch.ones(n_tokens, n_before + n_tokens, dtype=torch.bool).tril(n_before)
    plain = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    torch.testing.assert_close(cpu_attention.attend_in_blocks(q, k, v), plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("many", [0, 2**30], ids=["many keys", "few keys"])
@pytest.mark.parametrize("kind", ["all", "bool", "float"])
@settings(max_examples=20)
@given(**HEADS, n_tokens=st.integers(1, 16), n_keys=st.integers(16, 90))
def test_attention_of_few_queries_equals_plain_attention(
    dtype, many, kind, n_rows, n_kv_head, group, n_tokens, n_keys
):
    torch.manual_seed(n_keys)
    q = torch.randn(n_rows, n_kv_head * group, n_tokens, 8).to(dtype)
    k, v = torch.randn(2, n_rows, n_kv_head, 100, 8).to(dtype)[..., :n_keys, :]  # a part of a longer cache
    seen = torch.rand(n_rows, 1, n_tokens, n_keys) < 0.5
    seen[..., 0] = True
    mask = {"all": None, "bool": seen, "float": torch.randn(n_rows, n_kv_head * group, n_tokens, n_keys)}[
        kind
    ]
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), mask.double() if kind == "float" else mask, enable_gqa=True
    )
    with pytest.MonkeyPatch.context() as m:
        m.setattr(cpu_attention, "MIN_KEY_ELEMENTS_BF16", many)
        few = cpu_attention.attend_few_queries(q, k, v, mask)
    assert few.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(few.double(), exact, atol=tolerance, rtol=0.4 * tolerance)


@pytest.mark.parametrize("graph", GRAPHS)
def test_bf16_without_gradients_uses_block_attention_with_a_similar_error(graph, monkeypatch):
    torch.manual_seed(0)
    model = GPT(GRAPHS[graph]).eval()
    ids = torch.randint(0, 320, (3, 130))
    taken = []
    monkeypatch.setattr(
        attention, "attend_in_blocks", lambda *a, f=cpu_attention.attend_in_blocks: taken.append(1) or f(*a)
    )
    with torch.inference_mode():
        exact = model(ids).hidden
        assert not taken
        with torch.autocast("cpu", torch.bfloat16):
            near = model(ids).hidden
            assert len(taken) == 3
            monkeypatch.setattr(attention, "attend_in_blocks", _kernel)
            kernel = model(ids).hidden
    assert (near - exact).abs().mean() < 1.2 * (kernel - exact).abs().mean()


@pytest.mark.parametrize("graph", GRAPHS)
def test_prefill_in_bf16_uses_block_attention_in_every_chunk(graph, monkeypatch):
    """Chunks that need more than the causal mask (several rows, padding) do not use it."""
    torch.manual_seed(0)
    model = GPT(GRAPHS[graph]).eval().bfloat16()
    ids = torch.randint(0, 320, (2, 130))
    taken = []
    monkeypatch.setattr(
        attention,
        "attend_in_blocks",
        lambda q, *kv, f=cpu_attention.attend_in_blocks: taken.append(q.shape[2]) or f(q, *kv),
    )

    def read(chunks, slots, n_real=None):
        cache = Cache(model.config, 2, dtype=torch.bfloat16)
        return [model(c, cache=cache.rows(slots, n_real)).hidden[0] for c in chunks]

    with torch.inference_mode():
        whole = model(ids[:1]).hidden[0]
        assert taken == [130] * 3
        lone = torch.cat(read(ids[:1].split(50, dim=1), [0]))
        assert taken[3:] == [50] * 6 + [30] * 3
        read(ids.split(65, dim=1), [0, 1])
        read(ids[:1].split(65, dim=1), [0], [60])
        assert taken[12:] == [65] * 3  # the first chunk of two rows needs only the causal mask
    assert (lone - whole).abs().mean() < 0.02 * whole.abs().mean()


def _kernel(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 20), (700,), (1,), (0,)])
def test_linear_layers_by_onednn_equal_float32_linear_layers(bias, shape):
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 33, bias=bias)
    x = torch.randn(*shape, 96)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    with torch.inference_mode(), onednn._OneDNN():
        torch.testing.assert_close(layer(x).double(), exact, atol=1e-5, rtol=1e-6)


def test_onednn_skips_gradients_other_dtypes_and_few_rows(monkeypatch):
    def refuse(*args):
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(onednn, "_by_onednn", refuse)
    layer, x = torch.nn.Linear(32, 32), torch.randn(64, 32)
    with onednn._OneDNN():
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        with torch.inference_mode():
            assert layer.double()(x.double()).dtype == torch.float64
            layer.float()
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(x).dtype == torch.bfloat16
            layer(x[:3])
            with pytest.raises(AssertionError, match="oneDNN"):
                layer(x)


def test_onednn_is_chosen_by_capability_or_by_the_record(monkeypatch):
    cpu = torch.device("cpu")
    for faster in (True, False):
        monkeypatch.setattr(onednn, "capability", lambda device, f=faster: Capability("float32", f, "test"))
        assert onednn.choose_onednn(cpu) == faster
        assert onednn.choose_onednn(cpu, not faster) != faster
        assert isinstance(onednn.fast_linear(cpu), onednn._OneDNN) == faster
    with onednn.fast_linear(torch.device("meta"), True) as nothing:
        assert nothing is None
