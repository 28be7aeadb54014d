"""The KV cache: keys and values of past tokens, in slots that are allocated once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_core.model.config import GPTConfig


class Cache:
    """Keys and values of up to `n_slots` sequences of at most `length` tokens; each slot has its own length.

    Attributes:
        k: (n_layer, n_slots, n_kv_head, length, head_dim), keys after QK-norm and rotation.
        v: (n_layer, n_slots, n_kv_head, length, head_dim), values.
        lengths: (n_slots,) int64 on the CPU, tokens in each slot.
        high_water: for each slot, the number of positions written since it was last cleared, also by a failed forward.
        length: capacity of a slot in tokens.

    Args:
        config: the shape of the GPT.
        n_slots: number of sequences.
        device: of k and v.
        dtype: of k and v. Decoding is exact only in the model's dtype.
        length: tokens per slot; None: the model's `block_size`.
    """

    def __init__(
        self,
        config: GPTConfig,
        n_slots: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        length: int | None = None,
    ) -> None:
        shape = (config.n_layer, n_slots, config.n_kv_head, length or config.block_size, config.head_dim)
        # (n_layer, n_slots, n_kv_head, length, head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        # (n_layer, n_slots, n_kv_head, length, head_dim)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        # (n_slots,), on the CPU: the engine reads it every step
        self.lengths = torch.zeros(n_slots, dtype=torch.long)
        self.high_water = [0] * n_slots  # a failed forward may have written beyond `lengths`
        self.length: int = shape[3]

    def free(self, slot: int) -> None:
        """Delete all tokens of `slot`."""
        self.cut(slot, 0)

    def cut(self, slot: int, length: int) -> None:
        """Delete the tokens of `slot` after the first `length`.

        Their keys and values are zeroed: a NaN left there would spread to the next sequence, since 0 · NaN is NaN.
        """
        for store in (self.k, self.v):
            store[:, slot, :, length : self.high_water[slot]].zero_()  # (n_layer, n_kv_head, n, head_dim)
        self.lengths[slot] = self.high_water[slot] = length

    def copy(self, source: int, target: int, length: int) -> None:
        """Replace the content of the slot `target` by the first `length` tokens of the slot `source`."""
        self.free(target)
        for store in (self.k, self.v):
            # (n_layer, n_kv_head, length, head_dim)
            store[:, target, :, :length] = store[:, source, :, :length]
        self.lengths[target] = self.high_water[target] = length

    def rows(self, slots: list[int], n_new: list[int] | None = None) -> "CacheRows":
        """Select the slots that the sequences of the next forward continue.

        Args:
            slots: sequence b of the next `ids` (B, T) continues the slot `slots[b]`; no slot twice.
            n_new: the first `n_new[b]` tokens of sequence b are real, the rest is padding; None: all T are real.
        """
        return CacheRows(self, slots, n_new)


@dataclass
class CacheRows:
    """The B slots that one forward reads and extends; made by `Cache.rows`, used once.

    `begin` sets the attributes from `n_real` on. N is the number of real (not padding) tokens of all B sequences.

    Attributes:
        cache: the cache.
        slots: B slots.
        n_new: B counts of real new tokens, or None: all are real.
        n_real: (B,) int64 on the CPU, real new tokens of each sequence.
        start: (B,) int64 on the CPU, tokens that each slot had before this forward.
        begins: `start` as a list: the position of each sequence's first new token.
        ends: B ints, `begins[b] + n_real[b]`: the length of each sequence after this forward.
        end: the largest of `ends`, which is S of the mask.
        positions: (B, T) int64, the position of each new token in its slot; for padding at most length - 1.
        row, step: (N,) int64, indices of the real tokens in (B, T).
        slot, position: (N,) int64, slot of each real token and its position there.
        mask: (B, 1, T, end) bool, True where a new token attends; None: causal, with S = T.
    """

    cache: Cache
    slots: list[int]
    n_new: list[int] | None

    def begin(self, n_rows: int, n_tokens: int) -> None:
        """Compute the positions and the mask of B = `n_rows` sequences of T = `n_tokens` tokens, once for all layers.

        Raises:
            ValueError: if the number of sequences is not that of the slots, or a slot is too short.
        """
        device = self.cache.k.device
        if n_rows != len(self.slots):
            raise ValueError(f"ids have {n_rows} rows; expected one for each of the {len(self.slots)} slots")
        self.n_real = torch.tensor(self.n_new or [n_tokens] * n_rows)  # (B,)
        self.start = self.cache.lengths[self.slots]  # (B,)
        self.end = int((self.start + self.n_real).max())
        if self.end > self.cache.length:
            raise ValueError(f"a slot of {self.cache.length} tokens cannot hold {self.end}")
        steps = torch.arange(n_tokens)  # (T,)
        # Padding may exceed the slot; clamping gives it a valid position.
        self.positions = (self.start[:, None] + steps).clamp(max=self.cache.length - 1).to(device)  # (B, T)
        row, step = (steps < self.n_real[:, None]).nonzero(as_tuple=True)  # (N,) each
        self.row, self.step = row.to(device), step.to(device)
        self.slot = torch.tensor(self.slots)[row].to(device)  # (N,)
        self.position = self.positions[self.row, self.step]  # (N,)
        # A token attends to its slot up to its own position, and padding does so, too: a mask row without a True would
        # give NaN in softmax. If all slots were empty and T = end, attention is causal and needs no mask.
        self.mask: Tensor | None = None
        if n_tokens != self.end or bool(self.start.any()):
            keys = torch.arange(self.end, device=device)  # (end,)
            self.mask = (keys <= self.positions[:, :, None]).unsqueeze(1)  # (B, T, end) → (B, 1, T, end)
        self.begins = self.start.tolist()
        self.ends = (self.start + self.n_real).tolist()
        for slot, end in zip(self.slots, self.ends, strict=True):
            self.cache.high_water[slot] = max(self.cache.high_water[slot], end)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write the new keys and values of a layer into the slots.

        Args:
            layer: index of the layer.
            k: (B, n_kv_head, T, head_dim).
            v: like k.
        """
        for store, new in ((self.cache.k[layer], k), (self.cache.v[layer], v)):
            if len(self.slots) == 1:
                begin, end = self.begins[0], self.ends[0]
                store[self.slots[0], :, begin:end] = new[0, :, : end - begin]  # (n_kv_head, N, head_dim)
            else:
                store[self.slot, :, self.position] = new[self.row, :, self.step]  # (N, n_kv_head, head_dim)

    def one_row(self, layer: int, b: int) -> tuple[Tensor, Tensor]:
        """All keys and values of sequence b, (1, n_kv_head, ends[b], head_dim) each; views."""
        slot, end = self.slots[b], self.ends[b]
        # (1, n_kv_head, ends[b], head_dim) each
        return self.cache.k[layer, slot : slot + 1, :, :end], self.cache.v[layer, slot : slot + 1, :, :end]

    def all_rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values of all sequences, padded to the longest, (B, n_kv_head, end, head_dim) each."""
        first, n = self.slots[0], len(self.slots)
        consecutive = self.slots == list(range(first, first + n))  # a view; other slots need a copy
        select = slice(first, first + n) if consecutive else self.slots
        # (B, n_kv_head, end, head_dim) each
        return self.cache.k[layer, select, :, : self.end], self.cache.v[layer, select, :, : self.end]

    def finish(self) -> None:
        """Count the new tokens. Called after the last layer, so a failed forward leaves `lengths` unchanged."""
        self.cache.lengths[self.slots] += self.n_real  # (B,)
