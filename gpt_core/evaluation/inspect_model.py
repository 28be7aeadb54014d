"""Inspect a model: shapes, parameter counts, memory, attention and next-token probabilities."""

import re
import textwrap
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.evaluation.plots import (
    MAX_DRAWN_TOKENS,
    attention_maps,
    plot_attention,
    plot_next,
    plot_positions,
    require_matplotlib,
)
from gpt_core.generation.prompts import read_prompt, refuse_long
from gpt_core.generation.sampling import NON_FINITE
from gpt_core.hardware.device import pick_device
from gpt_core.hardware.onednn import packs
from gpt_core.hub.locate import resolve
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer


def inspect_model(
    *, model: str, prompt: str | None = None, out: str | None = None, top: int = 10, layer: int | None = None
) -> None:
    """Print a model's shapes, parameter counts, memory and next-token probabilities; draw its attention.

    Args:
        model: a model folder, a run's out_dir (its best checkpoint, else its latest), or a known model.
        prompt: a text, or FILE:path; needed for the next token and the attention weights.
        out: folder for the pictures: positions.png (learned positions), and with a prompt attention.png (every head of
            every layer), attention_layer_N.png (the heads of one layer, with token labels) and next_token.png.
        top: number of most probable next tokens to show.
        layer: index of the layer whose heads are drawn separately, from 0; the middle one by default.
    """
    if top < 1:
        raise InputError(f"top is {top}; expected at least 1 token to show.")
    if out is not None:
        require_matplotlib()
    text = None if prompt is None else read_prompt(prompt)
    folder = resolve(model)
    gpt = GPT.from_pretrained(folder)
    layer = gpt.config.n_layer // 2 if layer is None else layer
    if not 0 <= layer < gpt.config.n_layer:
        raise InputError(f"layer is {layer}; this model has layers 0 to {gpt.config.n_layer - 1}.")
    if out is not None and text is None and gpt.wpe is None:
        raise InputError(
            "This model has no learned positions to draw; give a --prompt to draw its attention."
        )
    ids: list[int] = []
    if text is not None:
        tokenizer = Tokenizer.from_pretrained(folder)
        refuse_long(text, gpt.config.block_size)
        ids = tokenizer.encode(text, add_special_tokens=True)
        if not 1 <= len(ids) <= gpt.config.block_size:
            raise InputError(
                f"The prompt has {len(ids)} tokens; expected 1 to the model's {gpt.config.block_size}."
            )

    print("\n".join([f"{folder}", *config_lines(gpt), "", *parameter_lines(gpt), "", *memory_lines(gpt)]))
    folder_out = None if out is None else Path(out)
    if folder_out is not None:
        folder_out.mkdir(parents=True, exist_ok=True)
        if gpt.wpe is not None:
            plot_positions(gpt.wpe.weight.detach(), folder_out / "positions.png")
    if text is not None:
        labels = prompt_labels(tokenizer, text, ids)
        best, entropy = next_tokens(gpt, ids, min(top, tokenizer.vocab_size), tokenizer.vocab_size)
        after = " ".join(labels[-8:])
        print(f"\nnext token after {'… ' if len(labels) > 8 else ''}{after} ({len(ids)} tokens)")
        names = [token_label(tokenizer, i) for i, _ in best]
        for (token, probability), name in zip(best, names, strict=True):
            print(f"  {probability:7.2%}  {name:<20} {token}")
        print(f"  entropy {entropy:.2f} bits: perplexity {2**entropy:,.1f}")
        if folder_out is not None:
            shares = [probability for _, probability in best]
            plot_next(names, shares, entropy, labels, folder_out / "next_token.png")
            maps = attention_maps(gpt, ids[:MAX_DRAWN_TOKENS])
            plot_attention(maps, labels[:MAX_DRAWN_TOKENS], layer, folder_out)
            if len(ids) > MAX_DRAWN_TOKENS:
                print(f"  the attention pictures show the first {MAX_DRAWN_TOKENS} of {len(ids)} tokens")
    if folder_out is not None:
        print(f"pictures in {folder_out}: " + ", ".join(sorted(p.name for p in folder_out.glob("*.png"))))


def config_lines(model: GPT) -> list[str]:
    """The configuration as wrapped lines of key=value."""
    values = {key: value for key, value in asdict(model.config).items() if value is not None}
    words = [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    ]
    return textwrap.wrap("  ".join(words), 100, initial_indent="  ", subsequent_indent="  ")


def parameter_lines(model: GPT) -> list[str]:
    """A table of all parameters, with those of equal blocks on one line, then the sums by kind."""
    rows: dict[tuple[str, str], list[Tensor]] = {}
    kinds = {"embeddings": 0, "attention": 0, "mlp": 0, "norms": 0}
    total = 0
    for name, p in model.named_parameters():  # a tied head is listed once
        rows.setdefault((re.sub(r"\.\d+\.", ".*.", name), " × ".join(map(str, p.shape))), []).append(p)
        kinds[_kind(name)] += p.numel()
        total += p.numel()
    lines = [f"{'parameter':<26}{'shape':>16}{'each':>15}{'':>6}{'together':>16}{'share':>8}"]
    for (name, shape), same in rows.items():
        together = sum(p.numel() for p in same)
        tied = " (and head)" if name == "wte.weight" and model.head is None else ""
        times = f"× {len(same)}" if len(same) > 1 else ""
        lines.append(
            f"{name + tied:<26}{shape:>16}{same[0].numel():>15,}{times:>6}{together:>16,}{together / total:>8.1%}"
        )
    for kind, n in kinds.items():
        lines.append(f"{kind:<57}{'':>6}{n:>16,}{n / total:>8.1%}")
    return [*lines, f"{'all':<57}{'':>6}{total:>16,}{1:>8.1%}"]


def _kind(name: str) -> str:
    if name.startswith(("wte.", "wpe.", "head.")):
        return "embeddings"
    if "norm" in name:
        return "norms"
    return "attention" if ".attn." in name else "mlp"


def memory_lines(model: GPT) -> list[str]:
    """Memory of the weights, and of the cache per token and per full context, in float32, bfloat16 and int8."""
    config, parameters = model.config, dict(model.named_parameters())
    n = sum(p.numel() for p in parameters.values())
    # to_int8: matrices in int8 with a bfloat16 scale per row; all else in bfloat16
    matrices = [p for name, p in parameters.items() if p.dim() == 2 and not name.startswith("wpe.")]
    n_int8 = 2 * n - sum(p.numel() - 2 * len(p) for p in matrices)
    per_token = 2 * config.n_layer * config.n_kv_head * config.head_dim  # keys and values
    lines = [f"{'memory':<10}{'weights':>12}{'cache, one token':>20}{f'{config.block_size} tokens':>16}"]
    # Packed weights cannot serve as an embedding table, so a tied head needs a second copy of the rows.
    head = config.vocab_size * config.n_embd if model.head is None else 0
    n_32, n_16 = (n + head * packs(pick_device("auto"), dtype) for dtype in (torch.float32, torch.bfloat16))
    for name, weights, width in (("float32", 4 * n_32, 4), ("bfloat16", 2 * n_16, 2), ("int8", n_int8, 2)):
        cache = width * per_token
        lines.append(
            f"{name:<10}{_size(weights):>12}{_size(cache):>20}{_size(cache * config.block_size):>16}"
        )
    return lines


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.4g} GiB"


@torch.inference_mode()
def next_tokens(model: GPT, ids: list[int], top: int, n_tokens: int) -> tuple[list[tuple[int, float]], float]:
    """The most probable next tokens after a text.

    Args:
        model: the model, in evaluation mode.
        ids: token ids of the text.
        top: number of tokens to return.
        n_tokens: size of the tokenizer's vocabulary; the model's padding rows beyond it are ignored.

    Returns:
        (id, probability) of the `top` most probable tokens in descending order, and the entropy of the whole
        distribution in bits.

    Raises:
        FloatingPointError: if a logit is NaN.
    """
    hidden = model(torch.tensor([ids], device=model.device), logits=False).hidden[0, -1]
    logprobs = model.logits(hidden)[:n_tokens].float().log_softmax(-1)
    probabilities = logprobs.exp()
    if probabilities.isnan().any():
        raise FloatingPointError(f"the best logit is nan: {NON_FINITE}")
    entropy = torch.special.entr(probabilities).sum().item() / torch.log(torch.tensor(2.0)).item()
    best = probabilities.topk(min(top, len(probabilities)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True)), entropy


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """The token's text in quotes with control characters escaped, or #id if it is not a whole character."""
    text = tokenizer.decode([token])
    return f"#{token}" if not text or "\ufffd" in text else repr(text)


def prompt_labels(tokenizer: Tokenizer, text: str, ids: list[int]) -> list[str]:
    """`token_label` of each token; tokens that are part of a character are labelled as character/part number.

    Args:
        tokenizer: the model's tokenizer.
        text: the prompt.
        ids: token ids of the prompt, including special tokens around it.
    """
    labels = [token_label(tokenizer, i) for i in ids]
    plain, offsets = tokenizer.encode_with_offsets(text)
    first = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), None)
    if first is None:  # the tokenizer encodes the text differently between special tokens
        return labels
    parts: dict[int, int] = {}
    for i, (start, end) in enumerate(offsets, first):
        if labels[i].startswith("#"):
            parts[end] = parts.get(end, 0) + 1
            labels[i] = f"{text[start:end]!r}/{parts[end]}"
    return labels
