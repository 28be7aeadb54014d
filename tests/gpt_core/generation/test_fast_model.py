import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gpt_core.common.errors import InputError
from gpt_core.generation import fast_model as inference
from gpt_core.generation.fast_model import load_for_inference, prepare
from gpt_core.generation.int8 import MIN_ROWS_TO_DEQUANTIZE, Int8Embedding, Int8Linear, quantize
from gpt_core.generation.sampling import SamplingParams
from gpt_core.hardware import onednn as products
from gpt_core.hardware.capability import Capability
from gpt_core.hardware.device import peak_memory
from gpt_core.hardware.onednn import PackedLinear, packs
from gpt_core.hub.locate import DEFAULT_GENERATOR
from gpt_core.model.cache import Cache, CacheRows
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from tests.gpt_core.generation.test_engine import SHAPES, alone, prompt_of, tiny_gpt

GREEDY = SamplingParams(max_new_tokens=8, temperature=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_linear_layers_give_the_same_logits(shape):
    model = tiny_gpt(shape)
    ids = torch.randint(64, (3, 20))
    expected = model(ids).logits
    merged = prepare(copy.deepcopy(model), "float32")
    torch.testing.assert_close(merged(ids).logits, expected, atol=2e-4, rtol=1e-5)
    assert not any(p.requires_grad for p in merged.parameters())


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    scale=st.floats(1e-30, 1e30),
    n_out=st.integers(1, 9),
    n_in=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_eight_bits_are_the_nearest(scale, n_out, n_in, dtype):
    weight = (torch.randn(n_out, n_in) * scale).to(dtype)
    weight[0] = 0
    rows, scales = quantize(weight)
    assert rows.dtype == torch.int8
    assert scales.dtype == dtype
    error = (rows.float() * scales.float()[:, None] - weight.float()).abs()
    # half a step, and a little more where a bfloat16 scale was rounded down and the largest number is clamped
    assert (error <= scales.float()[:, None] * (0.501 if dtype == torch.float32 else 1.0)).all()


@pytest.mark.parametrize("n_rows", [1, 5, MIN_ROWS_TO_DEQUANTIZE, 3 * MIN_ROWS_TO_DEQUANTIZE])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [8, 20, 40, 64, 100])  # torch's operator takes only multiples of 16
def test_an_int8_layer_computes_with_its_dequantised_weights(n_rows, bias, width):
    torch.manual_seed(0)
    weight, shift = torch.randn(48, width).bfloat16(), torch.randn(48).bfloat16() if bias else None
    layer = Int8Linear(*quantize(weight), shift)
    held = layer.weight.float() * layer.scale.float()[:, None]
    x = torch.randn(2, n_rows, width).bfloat16()
    expected = nn.functional.linear(x.float(), held, None if shift is None else shift.float())
    torch.testing.assert_close(layer(x).float(), expected, atol=0.2, rtol=2e-2)
    held_by_embedding = Int8Embedding(layer.weight, layer.scale)(places := torch.tensor([[3, 0], [47, 3]]))
    torch.testing.assert_close(held_by_embedding.float(), held[places], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n_in", "n_out"), [(64, 48), (7, 33), (100, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_gives_the_same_output(n_in, n_out, bias, dtype):
    if not packs(torch.device("cpu"), dtype):
        pytest.skip(f"{dtype} is not packed on this processor")
    layer = nn.Linear(n_in, n_out, bias=bias, dtype=dtype)
    packed = PackedLinear(layer.weight, layer.bias)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    with torch.inference_mode():
        for shape in ((1, 1, n_in), (2, 5, n_in), (3, n_in), (100, n_in), (0, n_in)):
            x = torch.randn(shape, dtype=dtype)
            torch.testing.assert_close(packed(x), layer(x), atol=tolerance, rtol=tolerance)


def test_only_dtypes_that_onednn_supports_on_this_processor_are_packed(monkeypatch):
    cpu = torch.device("cpu")
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        assert packs(cpu, torch.float32), "torch's operators for it are gone: decoding takes twice as long"
    assert not packs(torch.device("meta"), torch.float32)
    assert not packs(cpu, torch.float64)
    assert prepare(tiny_gpt("qwen3"), "bfloat16").blocks[0].mlp.down.__class__ is (
        PackedLinear if packs(cpu, torch.bfloat16) else nn.Linear
    )
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda: False)
    packs.cache_clear()
    try:
        assert not packs(cpu, torch.bfloat16)
        model = prepare(tiny_gpt("qwen3"), "bfloat16")
        assert not any(isinstance(module, PackedLinear) for module in model.modules())
        assert len(alone(model, prompt_of(40), GREEDY).token_ids) == 8
    finally:
        packs.cache_clear()


class Machine:
    """A clock for `decode_threads`: seconds of a step by (rows, threads)."""

    def __init__(self, monkeypatch, seconds):
        self.seconds, self.now, self.asked, self.n_rows = seconds, 0.0, [], 0
        monkeypatch.setattr(Cache, "rows", lambda cache, slots: self.rows(cache, slots))
        monkeypatch.setattr(inference, "wall_seconds", self.measure)
        monkeypatch.setattr(inference, "_n_threads", {})
        monkeypatch.setattr(inference.time, "monotonic", lambda: self.now)

    def rows(self, cache, slots):
        self.n_rows = len(slots)
        return CacheRows(cache, slots, None)

    def measure(self, step, device):
        step()
        self.asked.append((self.n_rows, torch.get_num_threads()))
        return self.seconds[self.asked[-1]]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_are_measured_for_few_rows_and_for_many(monkeypatch, two_threads):
    """One thread is faster for 1 row, two for 8 rows; two rows are as fast with either, so all threads are used."""
    seconds = {(1, 1): 1.0, (1, 2): 1.2, (2, 1): 1.0, (2, 2): 1.05, (8, 1): 2.0, (8, 2): 1.0}
    machine, model = Machine(monkeypatch, seconds), tiny_gpt("qwen3")
    assert [inference.decode_threads(model, n) for n in (1, 2, 8, 1, 2, 8)] == [1, 2, 2, 1, 2, 2]
    assert len(machine.asked) == 20 + 10 + 10  # one thread is measured twice before it is chosen


def test_a_busy_moment_does_not_leave_decoding_on_one_thread(monkeypatch, two_threads):
    machine, model = Machine(monkeypatch, {(1, 1): 1.0, (1, 2): 5.0}), tiny_gpt("qwen3")
    assert inference.decode_threads(model) == 1
    machine.seconds[1, 2] = 0.6  # the other process has ended
    machine.now += inference.RECHECK_SECONDS / 2
    assert inference.decode_threads(model) == 1
    machine.now += inference.RECHECK_SECONDS
    assert inference.decode_threads(model) == 2
    n = len(machine.asked)
    machine.now += 1000
    assert (inference.decode_threads(model), len(machine.asked)) == (2, n)

    machine = Machine(monkeypatch, {(1, 1): 1.0, (1, 2): 5.0})  # still slower later
    assert inference.decode_threads(model) == 1
    machine.now += 2 * inference.RECHECK_SECONDS
    assert inference.decode_threads(model) == 1
    n = len(machine.asked)
    machine.now += 1000
    assert (inference.decode_threads(model), len(machine.asked)) == (1, n)


@pytest.mark.parametrize("shape", [*SHAPES, "untied"])
def test_an_int8_model_predicts_nearly_the_same(shape):
    model = tiny_gpt("qwen3", tie_embeddings=False) if shape == "untied" else tiny_gpt(shape)
    for p in model.parameters():  # about as small as trained weights
        if p.dim() >= 2:
            nn.init.normal_(p, std=0.08)
    ids = torch.randint(64, (4, 30))
    expected = model(ids).logits.log_softmax(-1)
    quantised = prepare(copy.deepcopy(model), "int8")
    layers = [m for m in quantised.modules() if isinstance(m, nn.Linear)]
    assert layers == []  # all linear layers and the head are quantised
    assert quantised.device.type == "cpu"
    assert quantised.dtype == torch.bfloat16
    got = quantised(ids).logits.float().log_softmax(-1)
    divergence = (expected.exp() * (expected - got)).sum(-1)
    assert divergence.max() < 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_text_is_generated_in_every_dtype(dtype):
    model = prepare(tiny_gpt("qwen3"), dtype)
    request = alone(model, prompt_of(40), GREEDY)
    assert len(request.token_ids) == 8
    assert request.token_ids == alone(model, prompt_of(40), GREEDY, draft=0).token_ids


@pytest.mark.parametrize(
    ("dtype", "message"),
    [("int4", "dtype is 'int4'; expected one of auto"), ("float16", "float16, which is slow")],
)
def test_an_unsupported_dtype_is_rejected(dtype, message):
    with pytest.raises(InputError, match=message):
        load_for_inference(DEFAULT_GENERATOR, dtype, "cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_auto_is_the_dtype_of_the_capability_table(tmp_path, monkeypatch, dtype):
    tiny_gpt("qwen3").save_pretrained(tmp_path)
    monkeypatch.setattr(inference, "capability", lambda device: Capability(dtype, False, "the test says so"))
    assert load_for_inference(tmp_path, device="cpu").dtype == getattr(torch, dtype)


def test_a_model_prepared_for_inference_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match="fast generation"):
        prepare(tiny_gpt("qwen3"), "int8").save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


CLEAR_REFS = Path("/proc/self/clear_refs")


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="Linux measures the peak of a part of a process")
def test_weights_are_never_all_in_memory_as_float32(tmp_path):
    config = GPTConfig(
        vocab_size=2**16,
        block_size=8,
        n_layer=1,
        n_head=2,
        n_kv_head=2,
        n_embd=256,
        head_dim=128,
        n_inner=256,
    )
    model = GPT(config).to(torch.bfloat16)
    n_bytes = sum(p.numel() for p in model.parameters()) * 2  # 33 MiB, nearly all of them embeddings
    model.save_pretrained(tmp_path)
    del model
    CLEAR_REFS.write_text("5")  # the peak begins anew
    before = peak_memory(torch.device("cpu"))
    load_for_inference(tmp_path, "bfloat16", "cpu")
    # the file's pages, and a copy of the output layer where the CPU packs it; float32 alone would take twice n_bytes
    assert peak_memory(torch.device("cpu")) - before < 2.5 * n_bytes
