"""Largest activations, attention logits and update sizes against manual computation; compiled and sharded, too."""

import math
import os
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from gpt_core.model.attention import attend
from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT
from gpt_core.model.rope import rotate
from gpt_core.training.monitoring.diagnostics import Maxima, UpdateToWeight, largest_logit

QWEN3 = GPTConfig(
    vocab_size=31, block_size=16, n_layer=3, n_head=4, n_kv_head=2, n_embd=16, head_dim=8, n_inner=24
)
GPT2 = GPTConfig.gpt2(vocab_size=31, block_size=16, n_layer=2, n_head=2, n_embd=16)


def model_and_ids(config: GPTConfig) -> tuple[GPT, Tensor]:
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5)  # far from 0, so that wrong maxima differ
    return model, torch.randint(config.vocab_size, (3, 11))


def by_hand(model: GPT, ids: Tensor) -> tuple[list[float], list[float]]:
    """The largest activation and attention logit of each layer for ids (T,), computed from the model's parts."""
    activations, logits = [], []
    for layer, block in enumerate(model.blocks):
        x = model(ids[None], layer=layer).hidden
        activations.append(model(ids[None], layer=layer + 1).hidden.abs().max().item())
        attn, x = block.attn, block.norm1(x)
        q = attn.q_norm(attn.q(x).view(1, len(ids), -1, attn.head_dim)).transpose(1, 2)
        k = attn.k_norm(attn.k(x).view(1, len(ids), -1, attn.head_dim)).transpose(1, 2)
        if model.rope is not None:
            turn = model.rope(torch.arange(len(ids)))
            q, k = rotate(q, *turn), rotate(k, *turn)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = (q @ k.mT / math.sqrt(attn.head_dim))[0]
        logits.append(max(scores[:, t, s].max().item() for t in range(len(ids)) for s in range(t + 1)))
    return activations, logits


@pytest.mark.parametrize("config", [QWEN3, GPT2], ids=["qwen3", "gpt2"])
@torch.no_grad()
def test_maxima_are_those_of_the_first_sequence(config: GPTConfig) -> None:
    model, ids = model_and_ids(config)
    expected = model(ids).hidden
    with Maxima(model) as maxima:
        assert torch.equal(model(ids).hidden, expected)  # Maxima does not change the output
    activations, logits = by_hand(model, ids[0])
    assert maxima.activations() == pytest.approx(activations, rel=1e-5)
    assert maxima.attention_logits() == pytest.approx(logits, rel=1e-5)
    assert maxima.figures() == {
        "activation_max": max(maxima.activations()),
        "activation_max_layer": maxima.activations().index(max(maxima.activations())),
        "attention_logit_max": max(maxima.attention_logits()),
        "attention_logit_max_layer": maxima.attention_logits().index(max(maxima.attention_logits())),
    }
    model(ids + 0)
    assert len(maxima._logits[0]) == 1  # nothing is recorded after the with block


@torch.no_grad()
def test_maxima_are_taken_over_several_forwards() -> None:
    model, ids = model_and_ids(QWEN3)
    with Maxima(model) as maxima:
        for row in ids:
            model(row[None])
    one_by_one = [by_hand(model, row) for row in ids]
    for found, which in ((maxima.activations(), 0), (maxima.attention_logits(), 1)):
        assert found == pytest.approx([max(v) for v in zip(*(r[which] for r in one_by_one), strict=True)])


@torch.no_grad()
def test_masked_logits_do_not_count() -> None:
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8)
    scores = (q @ k.repeat_interleave(2, dim=1).mT / math.sqrt(8))[0]
    assert largest_logit(q, k, k, enable_gqa=True) == pytest.approx(scores.max().item())
    assert largest_logit(q, k, k, scale=1.0) == pytest.approx(math.sqrt(8) * scores.max().item())
    allowed = torch.rand(2, 1, 5, 7) < 0.3
    expected = scores.masked_fill(~allowed[0], -math.inf).max().item()
    assert largest_logit(q, k, k, allowed) == pytest.approx(expected)
    added = torch.zeros(2, 1, 5, 7).masked_fill(~allowed, -math.inf)
    assert largest_logit(q, k, k, added) == pytest.approx(expected)
    causal = torch.ones(5, 7, dtype=torch.bool).tril()
    assert largest_logit(q, k, k, is_causal=True) == largest_logit(q, k, k, causal)


@torch.no_grad()
def test_a_logit_is_exact_under_autocast(monkeypatch) -> None:
    model, ids = model_and_ids(QWEN3)
    seen: list[float] = []

    def spy(q: Tensor, k: Tensor, *rest: Any) -> Tensor:
        scores = q[:1].double() @ k[:1].double().repeat_interleave(2, dim=1).mT / math.sqrt(8)
        future = ~torch.ones_like(scores, dtype=torch.bool).tril()
        seen.append(scores.masked_fill(future, -math.inf).max().item())
        return attend(q, k, *rest)

    with torch.autocast("cpu", torch.bfloat16):
        with Maxima(model) as maxima:
            model(ids)
        monkeypatch.setattr("gpt_core.model.attention.attend", spy)
        model(ids)
    assert maxima.attention_logits() == pytest.approx(seen, rel=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's tracer reads .grad itself
def test_compiled_blocks_are_measured_in_eager_mode() -> None:
    model, ids = model_and_ids(QWEN3)
    with torch.no_grad(), Maxima(model) as plain:
        model(ids)
    for block in model.blocks:
        block.compile(backend="eager")
    model(ids, targets=ids).loss_sum.backward()
    for _ in range(2):
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), Maxima(model) as maxima:
            model(ids)
        assert maxima.figures() == plain.figures()
        model(ids, targets=ids).loss_sum.backward()


def test_nan_counts_as_the_maximum() -> None:
    model, ids = model_and_ids(QWEN3)
    with torch.no_grad(), Maxima(model) as maxima:
        model.blocks[1].mlp.down.weight.fill_(math.nan)
        model(ids)
    assert math.isnan(maxima.figures()["activation_max"])
    assert maxima.figures()["activation_max_layer"] == 1


def step(model: GPT) -> dict[str, float]:
    """The size of a simulated optimizer step."""
    with UpdateToWeight(dict(model.named_parameters())) as update_to_weight, torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(1.1 if "blocks" in name and p.dim() == 2 else 0.7)
    return update_to_weight.figures


def size(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    with UpdateToWeight(before) as update_to_weight:
        for name, tensor in before.items():
            tensor.copy_(after[name])
    return update_to_weight.figures


def test_an_update_is_relative_to_the_weights_before_it() -> None:
    model, _ = model_and_ids(GPT2)
    assert step(model) == {
        "update_to_weight_matrices": pytest.approx(0.1, rel=1e-4),
        "update_to_weight_rest": pytest.approx(0.3, rel=1e-4),
    }
    before = {"blocks.0.a": torch.tensor([[3.0, 0.0]]), "blocks.1.a": torch.tensor([[0.0], [4.0]])}
    after = {"blocks.0.a": torch.tensor([[3.0, 1.2]]), "blocks.1.a": torch.tensor([[1.6], [4.0]])}
    assert size(before, after) == {"update_to_weight_matrices": pytest.approx(2 / 5)}
    assert size({}, {}) == {}


def sharded(rank: int, folder: Path) -> None:
    """Run by each of two ranks: the diagnostics of a sharded model equal those of the unsharded one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    model, ids = model_and_ids(QWEN3)
    with torch.no_grad(), Maxima(model) as plain:
        model(ids)
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with torch.no_grad(), Maxima(model) as maxima:
        model(ids)
    assert maxima.figures() == pytest.approx(plain.figures())
    whole = step(model_and_ids(QWEN3)[0])
    assert step(model) == pytest.approx(whole, rel=1e-5)
    x, y = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.ones(5, 3)
    for placement in (Shard(0), Shard(1), Replicate()):
        parts = [{"x": distribute_tensor(t.clone(), mesh, [placement])} for t in (x, y)]
        assert size(*parts) == pytest.approx(size({"x": x.clone()}, {"x": y}))
    dist.destroy_process_group()


def test_diagnostics_of_a_sharded_model_equal_the_unsharded_ones(tmp_path: Path) -> None:
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                sharded(rank, tmp_path)
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
