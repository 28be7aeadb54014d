"""The GPT: one graph that is exactly GPT-2, GPT-Neo, Llama or Qwen3 by configuration.

References: GPT-2 (Radford et al. 2019) and nanoGPT; GPT-Neo (Black et al. 2021), whose windows are Longformer's
(Beltagy et al. 2020); SwiGLU (Shazeer 2020). Attention is in attention.py, norms and the MLP in layers.py, rotary
positions in rope.py.

Shapes: B sequences, T tokens per sequence, C = n_embd, V = vocab_size.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpt_core.common.errors import InputError
from gpt_core.model.attention import Attention
from gpt_core.model.cache import CacheRows
from gpt_core.model.config import GPTConfig
from gpt_core.model.layers import MLP, Dropout, make_norm
from gpt_core.model.masks import Alibi, segment_mask, segment_positions, window_mask
from gpt_core.model.rope import Rope

if TYPE_CHECKING:
    from gpt_core.formats.card import Card

LOSS_CHUNK = 2**25  # number of logits in memory at a time while the loss is computed: 128 MiB in float32


class GPTOutput(NamedTuple):
    """Result of a forward; a tuple, in which FSDP and torch.compile find the tensors.

    Attributes:
        hidden: (B, T, C) hidden states after the last block and the final norm, or after `layer` blocks.
        logits: (B, T, V), or None if not requested.
        loss_sum: 0-dim sum of the cross-entropy over all targets that are not -100, or None without targets.
        n_targets: 0-dim int64 count of these targets, or None without targets.
    """

    hidden: Tensor
    logits: Tensor | None = None
    loss_sum: Tensor | None = None
    n_targets: Tensor | None = None


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm1(x)), then x + mlp(norm2(x))."""

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
        """(B, T, C) → (B, T, C); `rope`, `mask` and `cache` are as for `Attention.forward`."""
        x = x + self.drop(self.attn(self.norm1(x), rope, mask, cache))  # (B, T, C)
        return x + self.drop(self.mlp(self.norm2(x)))  # (B, T, C)


class GPT(nn.Module):
    """A decoder-only transformer of the shape `config`.

    Args:
        config: the shape.
        init: gpt2: GPT-2's initialisation; zero: likewise, but with zero weights in the last projection of attention
            and MLP, so that each block starts as the identity (as in modded-nanogpt).
    """

    def __init__(self, config: GPTConfig, init: Literal["gpt2", "zero"] = "gpt2") -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # V → C
        self.wpe: nn.Embedding | None = None
        self.rope: Rope | None = None
        self.alibi: Alibi | None = None
        if config.position == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)  # block_size → C
        elif config.position == "rope":
            self.rope = Rope(config)
        else:
            self.alibi = Alibi(config)
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config, config.n_embd)
        self.head: nn.Module | None = None  # None: tied to the token embeddings
        if not config.tie_embeddings:
            self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)  # C → V
        # on the meta device, weights are loaded later; drawing them takes seconds
        if not self.wte.weight.is_meta:
            self._init_weights(0.0 if init == "zero" else 0.02 / math.sqrt(2 * max(1, config.n_layer)))

    def _init_weights(self, residual_std: float) -> None:
        """GPT-2's: normal with std 0.02, biases 0; `residual_std` for the last projections of attention and MLP."""
        for name, p in self.named_parameters():
            if p.dim() >= 2:
                residual = name.endswith(("attn.o.weight", "mlp.down.weight"))
                nn.init.normal_(p, std=residual_std if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def keep_blocks(self, n_layer: int) -> None:
        """Remove all blocks but the first `n_layer`."""
        self.blocks = self.blocks[:n_layer]
        self.config = self.config.with_blocks(n_layer)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the hidden states between blocks."""
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
        """Run the GPT over B sequences of T tokens, padding included.

        Args:
            ids: (B, T) int64 token ids.
            targets: (B, T) int64, already shifted: targets[b, t] should follow ids[b, t]; -100 is ignored. The output
                then has `loss_sum` and `n_targets`; the logits for the loss are computed in chunks.
            positions: (B, T) or (T,) int64, below `block_size`; default: each token's position in its segment, or
                after the cached tokens. ALiBi ignores it and uses distances within the sequence.
            segments: (B, T) int64; a token attends to the earlier tokens of its sequence with the same segment id, so
                several texts can be packed into one sequence. Negative ids mark padding, on either side. Not with
                `cache`.
            cache: the slots that the sequences continue, from `Cache.rows`; None: the sequences start here.
                Sequences with fewer new tokens are right-padded.
            logits: False: do not compute the (B, T, V) logits, for encoders and for training.
            layer: stop after this many blocks and return the hidden states without the final norm, as transformers'
                `hidden_states[layer]` (0: the token embeddings); without logits and loss.

        Raises:
            ValueError: for arguments that cannot be combined; for no tokens; for positions from `block_size` on, except
                ALiBi's, which have no end. `positions` and those of `segments` are checked on the CPU only.
        """
        if cache is not None and segments is not None:
            raise ValueError("segments cannot be combined with a cache; a slot holds one sequence")
        if cache is not None and layer is not None:
            raise ValueError("layer cannot be combined with a cache; the layers above would get no keys")
        if layer is not None and not 0 <= layer <= self.config.n_layer:
            raise ValueError(f"layer is {layer}; expected 0 to {self.config.n_layer}")
        n_rows, n_tokens = ids.shape
        if not n_rows or not n_tokens:
            raise InputError(
                f"ids have the shape {tuple(ids.shape)}; expected at least one row of one token."
            )
        mask = None
        if cache is not None:
            cache.begin(n_rows, n_tokens)
            mask = cache.mask  # (B, 1, T, cache.end), or None
            positions = cache.positions if positions is None else positions  # (B, T)
        elif segments is not None:
            mask = segment_mask(segments)  # (B, 1, T, T)
            positions = segment_positions(segments) if positions is None else positions  # (B, T)
        if positions is None:
            positions = torch.arange(n_tokens, device=ids.device)  # (T,)
            self._check_context(n_tokens)
        elif (
            positions.device.type == "cpu" and not torch.compiler.is_compiling()
        ):  # elsewhere the check would wait
            self._check_context(int(positions.max()) + 1)
        mask, windowed = self._masks(mask, cache, n_tokens)

        x = self.wte(ids)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions)  # (B, T, C)
        # cosine and sine, (B, 1, T, head_dim) or (1, T, head_dim) each
        rope = self.rope(positions) if self.rope is not None else None
        x = self.drop(x)
        for i, block in enumerate(self.blocks[:layer]):
            x = block(x, rope, windowed if i in self.config.window_layers else mask, cache)  # (B, T, C)
        if cache is not None:
            cache.finish()
        if layer is not None:
            return GPTOutput(hidden=x)

        hidden = self.norm(x)  # (B, T, C)
        return GPTOutput(
            hidden,
            logits=self.logits(hidden) if logits else None,  # (B, T, V)
            # (B·T, C), (B·T,) → 0-dim
            loss_sum=None if targets is None else self.loss_sum(hidden.flatten(0, 1), targets.flatten()),
            n_targets=None if targets is None else (targets != -100).sum(),
        )

    def _check_context(self, n_tokens: int) -> None:
        if n_tokens > self.config.block_size and self.config.position != "alibi":
            raise InputError(
                f"A sequence has {n_tokens} tokens; the model's context (block_size) holds {self.config.block_size}."
            )

    def _masks(
        self, mask: Tensor | None, cache: CacheRows | None, n_tokens: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Apply windows and ALiBi to `mask`.

        Returns:
            The masks of layers without and with a window, each as for `attend`: (B or 1, 1 or n_head, T, S) or None.
        """
        window = self.config.window
        if self.alibi is None and window is None:
            return mask, mask
        positions, n_keys = torch.arange(n_tokens, device=self.device), n_tokens  # (T,), T
        if cache is not None:
            # Padding gets the position of its sequence's last token, so that its window is never empty.
            last = (cache.start + cache.n_real - 1).to(self.device)  # (B,)
            positions, n_keys = cache.positions.minimum(last[:, None]), cache.end  # (B, T), S
        windowed = (
            mask if window is None else window_mask(mask, positions, n_keys, window)
        )  # (B or 1, 1, T, S)
        if self.alibi is None:
            return mask, windowed
        # (B or 1, n_head, T, S) each
        return self.alibi(mask, positions, n_keys), self.alibi(windowed, positions, n_keys)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (…, V) of final hidden states (…, C)."""
        # (…, C) → (…, V)
        return F.linear(hidden, self.wte.weight) if self.head is None else self.head(hidden)

    def loss_sum(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Sum of the cross-entropy over N tokens, in chunks of n tokens whose logits are recomputed in backward.

        Args:
            hidden: (N, C).
            targets: (N,) int64.

        Returns:
            0-dim, float32 or wider.
        """

        def chunk_loss(h: Tensor, t: Tensor) -> Tensor:
            logits = self.logits(h)  # (n, C) → (n, V)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return F.cross_entropy(logits, t, ignore_index=-100, reduction="sum")  # 0-dim

        size = max(1, LOSS_CHUNK // self.config.vocab_size)
        if len(targets) <= size:
            return chunk_loss(hidden, targets)
        losses = [
            checkpoint(chunk_loss, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(size), targets.split(size), strict=True)  # (n, C), (n,)
        ]
        return torch.stack(losses).sum()  # (number of chunks,) → 0-dim

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, dtype: torch.dtype = torch.float32) -> "GPT":
        """Load a model: a known name, a run's `out_dir`, a Hugging Face folder or a folder with a GGUF file.

        A folder with nanoGPT's `ckpt.pt` or small-gpt's `.pth` can be loaded, too. For its tokenizer, add what the
        checkpoint lacks: nanoGPT's `meta.pkl` (not needed for GPT-2's BPE), small-gpt's training text.

        The weights are on the CPU; the model is in evaluation mode. An adapter of peft in the folder is merged.

        Args:
            name_or_folder: the model.
            dtype: of the weights; each tensor is converted as it is read.

        Raises:
            InputError: for an unknown name, missing weights, or a configuration that is not supported.
        """
        from gpt_core.formats.pretrained import load

        return load(name_or_folder, dtype)

    def save_pretrained(
        self, folder: str | Path, weights: dict[str, Tensor] | None = None, card: "Card | None" = None
    ) -> None:
        """Write `config.json` and `model.safetensors` as transformers, vLLM and llama.cpp's converter read them.

        A model card, README.md, is written with them, unless the folder has one that was not generated.

        Args:
            folder: created if it is missing.
            weights: the full `state_dict()` of a sharded model, gathered by the caller; None: this model's own.
            card: content of the model card other than the shape.
        """
        from gpt_core.formats.pretrained import save

        save(self, Path(folder), weights, card)
