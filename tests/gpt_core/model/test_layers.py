"""Dropout: share of dropped values, scale of the others, reproducibility with a seed."""

import pytest
import torch

from gpt_core.model.layers import Dropout


@pytest.mark.parametrize("p", [0.0015, 0.01, 0.1, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_drops_the_share_p_and_scales_the_rest(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.full((37, 11, 301), 2.0, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    y.sum().backward()
    assert x.grad is not None
    assert y.dtype == dtype
    dropped = y == 0
    # four standard deviations of the binomial, plus the rounding of p to 1/256
    noise = 4 * (p * (1 - p) / x.numel()) ** 0.5
    assert dropped.double().mean().item() == pytest.approx(p, abs=noise + 0.02 * min(p, 1 - p))
    assert (y.max() / 2).item() == pytest.approx(1 / (1 - p), rel=0.03)
    assert torch.equal(y, torch.where(dropped, 0, y.max()))
    assert torch.equal(x.grad == 0, dropped)
    for neighbour in (y[:, :, 1:], y[:, 1:], y[1:]):  # neighbouring values are dropped independently
        here = dropped[: neighbour.shape[0], : neighbour.shape[1], : neighbour.shape[2]]
        both = (here & (neighbour == 0)).double().mean().item()
        assert both == pytest.approx(dropped.double().mean().item() ** 2, abs=0.01)


def test_a_seed_repeats_the_mask_and_evaluation_drops_nothing() -> None:
    drop, x = Dropout(0.3), torch.randn(5, 7)
    torch.manual_seed(1)
    first = drop(x)
    assert not torch.equal(drop(x), first)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first)
    assert drop.eval()(x) is x
