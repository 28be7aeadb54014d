"""Plots of learned positions, attention weights and next-token probabilities. Needs matplotlib."""

import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpt_core.common.extras import extra
from gpt_core.common.files import atomic_write
from gpt_core.model.attention import attend
from gpt_core.model.gpt import GPT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_DRAWN_TOKENS = 256  # prompt tokens whose attention is drawn
MAX_LABELLED_TOKENS = 40  # with more tokens the axes have no token labels
MAX_LABEL_CHARACTERS = 14  # longer token labels are cut
# Fonts with Chinese characters on Linux, macOS and Windows; the first installed one is used
CHINESE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *("PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Droid Sans Fallback"),
)


class AttentionWeights(TorchFunctionMode):
    """Context manager that records the attention weights of every `attend` call.

    It calls `attend` again with the columns of the identity matrix as values: softmax(q·kᵀ)·I. The weights therefore
    include masks, windows and biases, without a second implementation.

    Attributes:
        maps: for each call, in order, weights (n_head, T, S) of the first sequence, float32 on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is attend:
            q, k, v, *rest = args
            n_keys, width = v.shape[2], v.shape[3]
            columns = torch.eye(n_keys, device=v.device, dtype=v.dtype)
            columns = torch.nn.functional.pad(columns, (0, -n_keys % width))
            parts = [
                attend(q, k, part.expand(*v.shape[:2], -1, -1).contiguous(), *rest, **kwargs)[0]
                for part in columns.split(width, dim=1)
            ]
            self.maps.append(torch.cat(parts, dim=-1)[..., :n_keys].float().cpu())
        return func(*args, **kwargs)


@torch.no_grad()
def attention_maps(model: GPT, ids: list[int]) -> Tensor:
    """Attention weights (n_layer, n_head, T, T) over `ids`; each row sums to 1."""
    with AttentionWeights() as weights:
        model(torch.tensor([ids], device=model.device), logits=False)
    return torch.stack(weights.maps)


def require_matplotlib() -> None:
    """Check that matplotlib is installed, before any work.

    Raises:
        InputError: naming the pip extra to install, if it is not installed.
    """
    with extra("train"):
        import matplotlib  # noqa: F401


def plot_positions(weight: Tensor, path: Path) -> None:
    """Plot learned positions (block_size, C): pairwise cosines, norms, and projections on the principal components."""
    unit = torch.nn.functional.normalize(weight.float(), dim=1)
    _, strengths, directions = torch.linalg.svd(weight.float() - weight.float().mean(0), full_matrices=False)
    figure = new_figure(11, 4.6)
    left, upper, lower = figure.subplot_mosaic(
        [["left", "upper"], ["left", "lower"]], width_ratios=[1, 1.15]
    ).values()
    image = left.imshow((unit @ unit.T).numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="antialiased")
    left.set(title="cosine of two positions", xlabel="position", ylabel="position")
    figure.colorbar(image, ax=left, shrink=0.8)
    upper.plot(weight.float().norm(dim=1).numpy(), color="#1f4e8c", linewidth=1.2)
    upper.set(title="norm of the vector", xlabel="position", ylim=(0, None))
    n = min(3, len(directions))
    share = strengths[:n].square() / strengths.square().sum().clamp(min=1e-30)
    for i, color in zip(range(n), ("#1f4e8c", "#c8501e", "#3c8c5a"), strict=False):
        values = (weight.float() - weight.float().mean(0)) @ directions[i]
        lower.plot(values.numpy(), color=color, linewidth=1.2, label=f"{share[i]:.0%}")
    lower.set(title="principal components, with their shares of the variance", xlabel="position")
    lower.margins(y=0.25)  # for the legend
    lower.legend(frameon=False, fontsize=8, loc="upper center", ncols=n)
    for axes in (upper, lower):
        style_axes(axes)
    save_figure(figure, path)


def plot_attention(maps: Tensor, labels: Sequence[str], layer: int, folder: Path) -> None:
    """Write attention.png (every head of every layer) and attention_layer_N.png (one layer, with token labels).

    Args:
        maps: (n_layer, n_head, T, T), from `attention_maps`.
        labels: the T token labels.
        layer: index of the layer whose heads are drawn separately.
        folder: output folder.
    """
    n_head, n_tokens = maps.shape[1:3]
    maps = maps.masked_fill(torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1), torch.nan)
    save_figure(_overview(maps), folder / "attention.png")

    columns = next(n for n in (1, 2, 3, 4) if n * n >= n_head or n == 4)
    rows = -(-n_head // columns)
    named = n_tokens <= MAX_LABELLED_TOKENS
    side = max(2.6, 0.16 * n_tokens) + 0.8 if named else 3.4
    figure = new_figure(side * columns, side * rows + 0.4)
    figure.suptitle(f"layer {layer}: how much each token (row) attends to each earlier token (column)")
    names, font = drawable(labels)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for head, axes in enumerate(grid[:n_head]):
        image = _draw_weights(axes, maps[layer, head])
        axes.set_title(f"head {head}", fontsize=9)
        if named:
            places = range(n_tokens)
            style = {"fontsize": 6.5, "fontfamily": font, "parse_math": False}
            axes.set_xticks(places, names, rotation=90, **style)
            axes.set_yticks(places, names if head % columns == 0 else [], **style)
        axes.tick_params(length=0)
    for axes in grid[n_head:]:
        axes.set_visible(False)
    figure.colorbar(image, ax=grid.tolist(), shrink=0.5, aspect=40)
    save_figure(figure, folder / f"attention_layer_{layer}.png")


def _overview(maps: Tensor) -> "Figure":
    """All maps (n_layer, n_head, T, T) in one image: hundreds of separate axes would take minutes to draw."""
    n_layer, n_head, n_tokens, _ = maps.shape
    scale = max(1, -(-48 // n_tokens))  # enlarge the maps of short prompts
    tile = maps.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    gap = max(2, tile.shape[2] // 12)
    tile = torch.nn.functional.pad(tile, (0, gap, 0, gap), value=torch.nan)
    size = tile.shape[2]
    mosaic = tile.permute(0, 2, 1, 3).reshape(n_layer * size, n_head * size)[:-gap, :-gap]
    figure = new_figure(0.9 * n_head + 1.4, 0.9 * n_layer + 0.8)
    axes = figure.add_subplot()
    image = _draw_weights(axes, mosaic)
    middle = (size - gap) / 2
    axes.set_xticks([middle + size * i for i in range(n_head)], [str(i) for i in range(n_head)])
    axes.set_yticks([middle + size * i for i in range(n_layer)], [str(i) for i in range(n_layer)])
    axes.set(xlabel="head", ylabel="layer", title=f"attention over {n_tokens} tokens")
    axes.tick_params(length=0, labeltop=True)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=min(1.0, 5 / n_layer), aspect=30)
    return figure


def plot_next(
    names: Sequence[str], shares: Sequence[float], entropy: float, prompt: Sequence[str], path: Path
) -> None:
    """Plot a bar chart of the most probable next tokens.

    Args:
        names: token labels, most probable first.
        shares: their probabilities.
        entropy: of the whole distribution, in bits.
        prompt: labels of the prompt's tokens, for the title.
        path: the PNG file to write.
    """
    bars, font = drawable(names)
    figure = new_figure(7, 1.2 + 0.32 * len(names))
    axes = figure.add_subplot()
    places = range(len(names))
    axes.barh(places, shares, color="#1f4e8c", height=0.7)
    axes.set_yticks(places, bars, fontfamily=font, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, max(shares) * 1.12)
    for place, share in zip(places, shares, strict=True):
        axes.text(share, place, f" {share:.1%}", va="center", fontsize=8)
    axes.set_xlabel(f"probability; entropy {entropy:.2f} bits")
    before, font = drawable(prompt[-6:])
    axes.set_title("after " + " ".join(before), fontsize=9, fontfamily=font, parse_math=False)
    style_axes(axes)
    save_figure(figure, path)


def drawable(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Labels that the fonts can draw, and the names of these fonts.

    A Chinese font is used where one is installed. Characters without a glyph are escaped as in Python; long labels are
    cut.
    """
    from matplotlib import font_manager

    # matplotlib warns for each label that a Chinese font has only one weight.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    installed = set(font_manager.get_font_names())
    # DejaVu Sans is part of matplotlib.
    fonts = ["DejaVu Sans", *[name for name in CHINESE_FONTS if name in installed][:1]]
    glyphs = set[int]()
    for font in fonts:
        glyphs |= font_manager.get_font(font_manager.findfont(font)).get_charmap().keys()
    short = [
        label if len(label) <= MAX_LABEL_CHARACTERS else label[: MAX_LABEL_CHARACTERS - 1] + "…"
        for label in labels
    ]
    return ["".join(c if ord(c) in glyphs else ascii(c)[1:-1] for c in label) for label in short], fonts


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches, which needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_weights(axes: "Axes", weights: Tensor) -> Any:
    """Draw weights from 0 to 1 on a square-root colour scale; masked positions (NaN) stay white."""
    from matplotlib.colors import PowerNorm

    axes.set_facecolor("white")
    return axes.imshow(
        weights.numpy(),
        cmap="magma_r",
        norm=PowerNorm(0.5, vmin=0, vmax=1),
        interpolation="nearest",
        aspect="equal",
    )


def style_axes(axes: "Axes") -> None:
    """Give axes a light grid behind what is drawn, and no frame."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, atomically."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    atomic_write(path, picture.getvalue())
