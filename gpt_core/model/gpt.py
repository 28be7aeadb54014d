"""The GPT: one readable graph that is exactly GPT-2, GPT-Neo, Llama or Qwen3 by configuration.

References: GPT-2 (Radford et al. 2019) and its best-known short form, nanoGPT; GPT-Neo (Black et al. 2021), whose
windows are Longformer's (Beltagy et al. 2020); SwiGLU (Shazeer 2020). Attention, norms and rotary positions are in
attention.py.

B is the number of rows, T of tokens in a row, C the width n_embd, V the vocabulary.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpt_core.model.attention import Attention
from gpt_core.model.cache import CacheRows
from gpt_core.model.config import GPTConfig
from gpt_core.model.layers import MLP, Dropout, make_norm
from gpt_core.model.masks import Alibi, segment_mask, segment_positions, window_mask
from gpt_core.model.rope import Rope

if TYPE_CHECKING:
    from gpt_core.formats.card import Card

LOSS_CHUNK = 2**25  # logits that exist at a time while the loss is computed: 128 MiB in float32


class GPTOutput(NamedTuple):
    """What a forward returns; a tuple, since what shards or compiles a model looks for tensors in those.

    Attributes:
        hidden: (B, T, C) states after the last block and the final norm, or after the `layer` asked for.
        logits: (B, T, V), or None when not asked for.
        loss_sum: 0-dim sum of the token losses over all targets that are not -100, or None without targets.
        n_targets: 0-dim int64 count of these targets, or None.
    """

    hidden: Tensor
    logits: Tensor | None = None
    loss_sum: Tensor | None = None
    n_targets: Tensor | None = None


class Block(nn.Module):
    """Attention, then the MLP, each on the normed stream and added back to it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = make_norm(config, config.n_embd)
        self.attn = Attention(config, layer)
        self.norm2 = make_norm(config, config.n_embd)
        self.mlp = MLP(config)
        self.drop = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: CacheRows | None,
    ) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        x = x + self.drop(self.attn(self.norm1(x), rope, mask, cache))
        return x + self.drop(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """A decoder-only transformer of the shape `config`.

    Args:
        config: the shape.
        init: gpt2: as GPT-2 was initialised; zero: likewise, but what the blocks add to the residual stream begins as
            zero, so that each begins as the identity (as in modded-nanogpt).
    """

    def __init__(self, config: GPTConfig, init: Literal["gpt2", "zero"] = "gpt2") -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe: nn.Embedding | None = None
        self.rope: Rope | None = None
        self.alibi: Alibi | None = None
        if config.position == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        elif config.position == "rope":
            self.rope = Rope(config)
        else:
            self.alibi = Alibi(config)
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config, config.n_embd)
        self.head: nn.Module | None = None  # None: the token embeddings are the head, too
        if not config.tie_embeddings:
            self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if not self.wte.weight.is_meta:  # a shell for loaded weights, where drawing none takes seconds
            self._init_weights(0.0 if init == "zero" else 0.02 / math.sqrt(2 * config.n_layer))

    def _init_weights(self, residual_std: float) -> None:
        """GPT-2's: normal with 0.02, biases 0; what is added to the residual stream, 2·n_layer times, has its own."""
        for name, p in self.named_parameters():
            if p.dim() >= 2:
                residual = name.endswith(("attn.o.weight", "mlp.down.weight"))
                nn.init.normal_(p, std=residual_std if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of what flows between the blocks."""
        return next(self.norm.parameters()).dtype

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: CacheRows | None = None,
        logits: bool = True,
        layer: int | None = None,
    ) -> GPTOutput:
        """Run the GPT over rows of tokens, which may differ in length.

        Args:
            ids: (B, T) int64 token ids.
            targets: (B, T) int64, already shifted: targets[b, t] is what should follow ids[b, t]; -100 does not
                count. The output then carries `loss_sum` and `n_targets`; the logits for it live a chunk at a time.
            positions: (B, T) int64; by default the place of each token in its segment, after the cached tokens. ALiBi
                has none: it goes by how far apart tokens lie in their row.
            segments: (B, T) int64; a token attends to the earlier tokens of its row that carry the same number, so
                several texts share a row. A negative number marks padding, on either side. Not with a cache.
            cache: the slots that the rows continue, from `Cache.rows`; without it the rows begin here. Right-pad
                rows that bring fewer new tokens.
            logits: False leaves (B, T, V) unallocated, for encoders and for training.
            layer: stop after this many blocks and return their states without the final norm, as transformers'
                `hidden_states[layer]` (0: the token embeddings). No logits and no loss then.

        Raises:
            ValueError: for arguments that exclude each other.
        """
        if cache is not None and segments is not None:
            raise ValueError("segments and a cache exclude each other: a slot holds one text")
        if cache is not None and layer is not None:
            raise ValueError("layer and a cache exclude each other: the blocks above would miss their keys")
        if layer is not None and not 0 <= layer <= self.config.n_layer:
            raise ValueError(f"layer is {layer}; expected 0 to {self.config.n_layer}")
        n_rows, n_tokens = ids.shape
        mask = None
        if cache is not None:
            cache.begin(n_rows, n_tokens)
            mask = cache.mask
            positions = cache.positions if positions is None else positions
        elif segments is not None:
            mask = segment_mask(segments)
            positions = segment_positions(segments) if positions is None else positions
        if positions is None:
            positions = torch.arange(n_tokens, device=ids.device)
        mask, near = self._masks(mask, cache, n_tokens)  # near: for the layers with a window

        x = self.wte(ids)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        rope = self.rope(positions) if self.rope is not None else None
        x = self.drop(x)
        for i, block in enumerate(self.blocks[:layer]):
            x = block(x, rope, near if i in self.config.window_layers else mask, cache)
        if cache is not None:
            cache.finish()
        if layer is not None:
            return GPTOutput(hidden=x)

        hidden = self.norm(x)
        return GPTOutput(
            hidden,
            logits=self.logits(hidden) if logits else None,
            loss_sum=None if targets is None else self._loss_sum(hidden.flatten(0, 1), targets.flatten()),
            n_targets=None if targets is None else (targets != -100).sum(),
        )

    def _masks(
        self, mask: Tensor | None, cache: CacheRows | None, n_tokens: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """What ALiBi and windows make of who may look at whom: for layers without a window, and for those with one."""
        window = self.config.window
        if self.alibi is None and window is None:
            return mask, mask
        places, n_seen = torch.arange(n_tokens, device=self.device), n_tokens
        if cache is not None:
            # Padding may lie behind all that its row has: it looks at what the last token does.
            last = (cache.start + cache.n_real - 1).to(self.device)
            places, n_seen = cache.positions.minimum(last[:, None]), cache.end
        near = mask if window is None else window_mask(mask, places, n_seen, window)
        if self.alibi is None:
            return mask, near
        return self.alibi(mask, places, n_seen), self.alibi(near, places, n_seen)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (…, V) of final states (…, C)."""
        return F.linear(hidden, self.wte.weight) if self.head is None else self.head(hidden)

    def _loss_sum(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Sum of cross-entropies over N tokens, their logits (N, V) never all alive: backward makes them again."""

        def chunk_loss(h: Tensor, t: Tensor) -> Tensor:
            logits = self.logits(h)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return F.cross_entropy(logits, t, ignore_index=-100, reduction="sum")

        size = max(1, LOSS_CHUNK // self.config.vocab_size)
        if len(targets) <= size:
            return chunk_loss(hidden, targets)
        losses = [
            checkpoint(chunk_loss, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(size), targets.split(size), strict=True)
        ]
        return torch.stack(losses).sum()

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> "GPT":
        """Load a model: a known name, a run's `out_dir`, a Hugging Face folder or one with a GGUF file.

        A folder with nanoGPT's `ckpt.pt` or small-gpt's `.pth` opens too; for its tokenizer put beside it what the
        checkpoint lacks: nanoGPT's `meta.pkl` (unless it speaks GPT-2's BPE), small-gpt's training text.

        The weights become float32 on the CPU and the model is in evaluation mode.

        Raises:
            InputError: for an unknown name, missing weights, or a configuration that this GPT does not compute.
        """
        from gpt_core.formats.pretrained import load

        return load(name_or_folder)

    def save_pretrained(
        self, folder: str | Path, weights: dict[str, Tensor] | None = None, card: "Card | None" = None
    ) -> None:
        """Write `config.json` and `model.safetensors` as transformers, vLLM and llama.cpp's converter read them.

        A model card, README.md, is written beside them, unless somebody's own stands there.

        Args:
            folder: where to; made if it is missing.
            weights: what `state_dict()` would give if this process held the whole model, which a sharded one does not.
            card: what the card is to say beside the shape.
        """
        from gpt_core.formats.pretrained import save

        save(self, Path(folder), weights, card)
