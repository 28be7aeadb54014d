"""Keys and values of past tokens, in slots that are allocated once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_core.model.config import GPTConfig


class Cache:
    """Room for `n_slots` texts of up to `length` tokens each, every slot with a length of its own.

    Args:
        config: the shape of the GPT whose keys and values it holds.
        n_slots: how many texts fit side by side.
        device: where the memory lies.
        dtype: of the keys and values; the model's own, or decoding is not exact.
        length: tokens per slot, the model's `block_size` if None.
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
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(n_slots, dtype=torch.long)  # on the CPU: the engine reads it at every step
        self.reach = [0] * n_slots  # tokens up to which a slot was written, by a forward that failed, too
        self.length: int = shape[3]

    def free(self, slot: int) -> None:
        """Forget what `slot` holds."""
        self.cut(slot, 0)

    def cut(self, slot: int, length: int) -> None:
        """Forget what `slot` holds beyond its first `length` tokens.

        It is zeroed, since a NaN that stayed would reach the next text: 0 · NaN is NaN.
        """
        for store in (self.k, self.v):
            store[:, slot, :, length : self.reach[slot]].zero_()
        self.lengths[slot] = self.reach[slot] = length

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` hold the first `length` tokens of `source`, and nothing else."""
        self.free(target)
        for store in (self.k, self.v):
            store[:, target, :, :length] = store[:, source, :, :length]
        self.lengths[target] = self.reach[target] = length

    def rows(self, slots: list[int], n_new: list[int] | None = None) -> "CacheRows":
        """Choose which slots the rows of the next forward continue.

        Args:
            slots: row b of the next `ids` (B, T) continues the text in `slots[b]`; no slot twice.
            n_new: the first `n_new[b]` tokens of row b are real, the rest padding; None: all T are.
        """
        return CacheRows(self, slots, n_new)


@dataclass
class CacheRows:
    """The slots that one forward reads and extends; made by `Cache.rows`, used once."""

    cache: Cache
    slots: list[int]
    n_new: list[int] | None

    def begin(self, n_rows: int, n_tokens: int) -> None:
        """Work out, once for all layers, where the new tokens go and what they may see."""
        device = self.cache.k.device
        if n_rows != len(self.slots):
            raise ValueError(f"ids have {n_rows} rows but the cache was asked for {len(self.slots)} slots")
        self.n_real = torch.tensor(self.n_new or [n_tokens] * n_rows)  # (B,)
        self.start = self.cache.lengths[self.slots]  # (B,) tokens already in each slot
        self.end = int((self.start + self.n_real).max())
        if self.end > self.cache.length:
            raise ValueError(f"a slot of {self.cache.length} tokens cannot hold {self.end}")
        steps = torch.arange(n_tokens)
        # Padding may run past the end of a slot; it only needs some valid place.
        self.positions = (self.start[:, None] + steps).clamp(max=self.cache.length - 1).to(device)  # (B, T)
        row, step = (steps < self.n_real[:, None]).nonzero(as_tuple=True)  # the N real tokens
        self.row, self.step = row.to(device), step.to(device)
        self.slot = torch.tensor(self.slots)[row].to(device)
        self.place = self.positions[self.row, self.step]
        # A token sees its own slot up to itself, and padding what a real token in its place would: never nothing,
        # which softmax would turn into NaN. Rows that all begin here need no mask beyond plain causality.
        self.mask: Tensor | None = None
        if n_tokens != self.end or bool(self.start.any()):
            seen = torch.arange(self.end, device=device)
            self.mask = (seen <= self.positions[:, :, None]).unsqueeze(1)  # (B, 1, T, end)
        self.begins = self.start.tolist()  # of what is new in each row
        self.ends = (self.start + self.n_real).tolist()
        for slot, end in zip(self.slots, self.ends, strict=True):
            self.cache.reach[slot] = max(self.cache.reach[slot], end)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store the new keys and values (B, n_kv_head, T, head_dim)."""
        for store, new in ((self.cache.k[layer], k), (self.cache.v[layer], v)):
            if len(self.slots) == 1:
                begin, end = self.begins[0], self.ends[0]
                store[self.slots[0], :, begin:end] = new[0, :, : end - begin]
            else:
                store[self.slot, :, self.place] = new[self.row, :, self.step]

    def one_row(self, layer: int, b: int) -> tuple[Tensor, Tensor]:
        """All keys and values of row b, (1, n_kv_head, its end, head_dim) each."""
        slot, end = self.slots[b], self.ends[b]
        return self.cache.k[layer, slot : slot + 1, :, :end], self.cache.v[layer, slot : slot + 1, :, :end]

    def all_rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values of all rows up to the longest one's end, (B, n_kv_head, end, head_dim) each."""
        first, n = self.slots[0], len(self.slots)
        run = self.slots == list(range(first, first + n))  # a view then; any other choice is a copy
        select = slice(first, first + n) if run else self.slots
        return self.cache.k[layer, select, :, : self.end], self.cache.v[layer, select, :, : self.end]

    def finish(self) -> None:
        """Count the new tokens; called after the last layer, so a forward that fails leaves the slots as they were."""
        self.cache.lengths[self.slots] += self.n_real
