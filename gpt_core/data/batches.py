"""Which windows of tokens a training step sees: a pure function of (seed, epoch, position).

nanoGPT draws windows at random with replacement, and after a resume draws the same ones again. Here an epoch is a
pseudo-random permutation of all windows, computed place by place: nothing is held in memory, a resume needs one
integer, and any number of ranks together see exactly what one rank alone would have seen.
"""

import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.data.permutation import endless_order
from gpt_core.data.shards import Shard

IGNORED = -100  # a target that does not count
EVAL_TOKENS = 2**14  # per forward of an evaluation
RELEASE_EVERY = 2**10  # rows read between two times that mapped files are let go of; each maps up to 0.4 MB


@dataclass(frozen=True)
class _Runs:
    """The stretches of one shard that windows stay inside of: its documents, or the whole shard.

    Attributes:
        tokens: (n_tokens,) the shard's ids.
        starts: (n_runs,) where each begins.
        stops: (n_runs,) how many windows the runs up to and including each one have.
    """

    tokens: NDArray
    starts: NDArray
    stops: NDArray


class Windows:
    """All windows of up to `block_size` consecutive targets over some shards; they overlap nowhere.

    Every token of a shard but its first is a target in exactly one window; a shard's last window may be shorter.

    Args:
        shards: the data.
        block_size: targets in a full window.
        align_documents: no window spans two documents: each begins where a document begins or goes on where the
            same document's last window ended. Then each document's first token is no target, and each document's
            last window may be shorter. Takes 8 to 16 bytes of memory per document.

    Raises:
        InputError: if the shards hold no target at all, or do not say where documents begin and that is asked for.
    """

    def __init__(self, shards: Sequence[Shard], block_size: int, align_documents: bool = False) -> None:
        self.shards = shards
        self.block_size = block_size
        self.n_targets = 0
        self._runs: list[_Runs] = []
        for shard in shards:
            size = len(shard.tokens)
            starts = _document_starts(shard) if align_documents else np.zeros(1, np.int64)
            n_targets = np.maximum(np.diff(starts, append=size) - 1, 0)
            narrow = np.uint32 if size < 2**32 else np.int64
            stops = np.cumsum(-(-n_targets // block_size), dtype=narrow)
            self._runs.append(_Runs(shard.tokens, starts.astype(narrow), stops))
            self.n_targets += int(n_targets.sum())
        # shard s holds the windows self._ends[s - 1] up to self._ends[s]
        self._ends = np.cumsum([int(runs.stops[-1]) if len(runs.stops) else 0 for runs in self._runs])
        digest = hashlib.sha256(b"".join(bytes(s.header["checksum"]) for s in shards if s.header is not None))
        self.checksum = digest.hexdigest()  # of the text, where its shards know theirs
        self._unreleased = 0  # rows read since mapped files were let go of
        if not len(self):
            raise InputError(
                f"{shards[0].path} holds {'no document of two tokens' if align_documents else 'fewer than two tokens'}"
                ": there is nothing to predict."
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> NDArray:
        """(n + 1,) ids of window `index`: the first n are the inputs, the last n their targets, n ≤ block_size."""
        shard, start, n_targets = self.locate(index)
        return self.shards[shard].tokens[start : start + n_targets + 1]

    def locate(self, index: int) -> tuple[int, int, int]:
        """Where window `index` is: number of the shard, its first token there, how many targets it has."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        starts, counts = self._spans(shard, np.array([index - first]))
        return shard, int(starts[0]), int(counts[0])

    def _spans(self, shard: int, indices: NDArray) -> tuple[NDArray, NDArray]:
        """First tokens and numbers of targets of these windows, counted from the shard's first one."""
        runs = self._runs[shard]
        run = np.searchsorted(runs.stops, indices.astype(runs.stops.dtype), side="right")
        before = np.where(run > 0, runs.stops[run - 1], 0).astype(np.int64)
        starts = runs.starts[run] + (indices - before) * self.block_size
        last = run + 1 == len(runs.starts)
        ends = np.where(last, len(runs.tokens), runs.starts[np.where(last, 0, run + 1)]).astype(np.int64)
        return starts, np.minimum(ends - starts - 1, self.block_size)

    def rows(self, indices: Sequence[int] | NDArray) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of these windows; what a short window lacks are targets that do not count."""
        chosen = np.asarray(indices, dtype=np.int64)
        shards = np.searchsorted(self._ends, chosen, side="right")
        window = np.arange(self.block_size + 1)
        both = np.empty((len(chosen), self.block_size + 1), np.int64)
        counts = np.empty(len(chosen), np.int64)
        for shard in np.unique(shards):
            mine = np.flatnonzero(shards == shard)
            first = int(self._ends[shard - 1]) if shard else 0
            starts, counts[mine] = self._spans(int(shard), chosen[mine] - first)
            tokens = np.asarray(self._runs[shard].tokens)  # numpy's own class gathers faster than its memmap
            both[mine] = tokens.take(starts[:, None] + window, mode="clip")
        ids, targets = both[:, :-1].copy(), both[:, 1:]
        if (counts < self.block_size).any():
            lacking = window[:-1] >= counts[:, None]
            ids[lacking], targets[lacking] = 0, IGNORED
        self._release(len(chosen))
        return torch.from_numpy(ids), torch.from_numpy(targets.copy())

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All windows once, in the order of the text, for evaluation."""
        for start in range(0, len(self), batch_size):
            yield self.rows(range(start, min(start + batch_size, len(self))))

    def _release(self, n_rows: int) -> None:
        """Bound this process's resident memory.

        A mapped page that was read counts as resident until the kernel wants it back, so a training over a large file
        looks as if it leaked all of it. It is page cache, shared by all ranks, but limits on containers count it.
        Unmapping the pages now and then leaves them in the cache; what reading adds then stays below half a GB.
        """
        self._unreleased += n_rows
        if self._unreleased < RELEASE_EVERY:
            return
        self._unreleased = 0
        for shard in self.shards:
            mapped = getattr(shard.tokens, "_mmap", None)
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                mapped.madvise(mmap.MADV_DONTNEED)


def _document_starts(shard: Shard) -> NDArray:
    if shard.header is None:
        raise InputError(
            f"{shard.path} does not say where its documents begin, which align_documents needs; prepare the data "
            "with scripts/prepare_data.py, or leave align_documents out."
        )
    return shard.documents().astype(np.int64)


class Batches:
    """The endless stream of training batches; one item is this rank's list of micro-batches for one step.

    A thread makes the next step's while this one is computed. It starts at the first step, so that a process that is
    forked before has none; one that is forked later starts its own.

    Args:
        windows: what there is to see.
        batch_size: windows per step over all ranks.
        micro_batch_size: windows per forward on one rank; None: all that the rank has in a step.
        seed: of the order.
        rank: this process's number.
        world_size: how many processes share a step.
        device: where the tensors go.
        batch_size_start: windows in the first step, when the batch grows linearly; None: batch_size.
        ramp_steps: the number of steps after which the batch has grown to batch_size. On the way it is rounded down
            to a multiple of micro_batch_size · world_size: more accumulation, never another shape.

    Raises:
        InputError: if batch_size or batch_size_start is not a multiple of micro_batch_size · world_size, or the batch
            would shrink.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        micro_batch_size: int | None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        *,
        batch_size_start: int | None = None,
        ramp_steps: int = 0,
    ) -> None:
        start = batch_size if batch_size_start is None else batch_size_start
        check_batch_sizes(batch_size, micro_batch_size, world_size, start, ramp_steps)
        self.windows = windows
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.batch_size_start, self.ramp_steps = start, ramp_steps
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.device = torch.device(device)
        self.position = 0  # windows that all ranks together have seen since the beginning
        self.step = 0  # steps they were seen in
        self._worker: tuple[int, ThreadPoolExecutor] | None = None  # and the process that it belongs to
        self._ahead: tuple[tuple[int, int], Future[list[tuple[Tensor, Tensor]]]] | None = None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> list[tuple[Tensor, Tensor]]:
        """This step's micro-batches: inputs and targets (micro_batch_size, T) int64.

        Raises:
            OSError, InputError: whatever the thread met; the stream stays where it was.
        """
        here = (self.position, self.step)
        following = (self.position + self.size_of_step(self.step), self.step + 1)
        worker = self._own_worker()
        if self._ahead is None or self._ahead[0] != here:
            self._ahead = (here, worker.submit(self._make, *here))
        future = self._ahead[1]
        self._ahead = None  # should it have failed, it is tried again
        micro_batches = future.result()
        self._ahead = (following, worker.submit(self._make, *following))
        self.position, self.step = following
        # From pinned memory the copy overlaps with what the GPU still computes; this thread's stream orders it.
        return [
            (ids.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True))
            for ids, targets in micro_batches
        ]

    def close(self) -> None:
        """End the thread; the stream stays where it is, and the next step would start another."""
        if self._worker is not None and self._worker[0] == os.getpid():
            self._worker[1].shutdown(cancel_futures=True)
        self._worker = self._ahead = None

    def _own_worker(self) -> ThreadPoolExecutor:
        if self._worker is None or self._worker[0] != os.getpid():  # a fork does not take threads along
            self._ahead = None
            begin = None
            if self.device.type == "cuda":  # pinned memory belongs to the thread's current GPU
                index = torch.cuda.current_device() if self.device.index is None else self.device.index
                begin = partial(torch.cuda.set_device, index)
            worker = ThreadPoolExecutor(1, "batches", initializer=begin)
            self._worker = (os.getpid(), worker)
        return self._worker[1]

    def _make(self, position: int, step: int) -> list[tuple[Tensor, Tensor]]:
        """The micro-batches, still on the CPU, of a step that begins at `position`."""
        share = self.size_of_step(step) // self.world_size
        first = position + self.rank * share
        indices = self.order(np.arange(first, first + share))
        size = self.micro_batch_size or share
        micro_batches = [self.windows.rows(indices[start : start + size]) for start in range(0, share, size)]
        if self.device.type == "cuda":
            return [(ids.pin_memory(), targets.pin_memory()) for ids, targets in micro_batches]
        return micro_batches

    def size_of_step(self, step: int) -> int:
        """How many windows all ranks together see after `step` steps."""
        if step >= self.ramp_steps:
            return self.batch_size
        unit = (self.micro_batch_size or 1) * self.world_size
        size = self.batch_size_start + (self.batch_size - self.batch_size_start) * step // self.ramp_steps
        return size // unit * unit

    def order(self, positions: NDArray) -> NDArray:
        """The windows at these positions of the endless stream."""
        return endless_order(positions, len(self.windows), self.seed)[0]

    def describe(self, step: int) -> str:
        """Which windows a step, the `step`-th from 1, saw over all ranks, for a message about it.

        The batch sizes of this run are taken to be those of all steps since.
        """
        position = self.position - sum(self.size_of_step(k) for k in range(step - 1, self.step))
        final = position + self.size_of_step(step - 1) - 1
        (epoch, first), (last_epoch, last) = (divmod(p, len(self.windows)) for p in (position, final))
        to = f"to {last:,}" if epoch == last_epoch else f"of epoch {epoch} to {last:,}"
        shard, start, _ = self.windows.locate(int(self.order(np.array([position]))[0]))
        return (
            f"windows {first:,} {to} of epoch {last_epoch} in the order of seed {self.seed}, the first of them at "
            f"token {start:,} of {self.windows.shards[shard].path}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last step that was taken from it, and what of."""
        return {
            "position": self.position, "step": self.step, "seed": self.seed, "n_windows": len(self.windows),
            "data_checksum": self.windows.checksum,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the batch size and the number of ranks may be others.

        Raises:
            InputError: if the data or the seed differ, since the position would then mean other windows.
        """
        mine = self.state_dict()
        for key in ("seed", "n_windows", "data_checksum"):
            if state[key] != mine[key]:
                raise InputError(
                    f"The checkpoint was made with {key} = {state[key]}, but this run has {mine[key]}; resume with "
                    "the same data, block_size, align_documents and seed, or choose another out_dir."
                )
        self.position, self.step = state["position"], state["step"]


def check_batch_sizes(
    batch_size: int, micro_batch_size: int | None, world_size: int, batch_size_start: int, ramp_steps: int
) -> None:
    """Make sure that every step can be cut into equal micro-batches over the ranks.

    Raises:
        InputError: naming the sizes that do not go into each other.
    """
    unit = (1 if micro_batch_size is None else micro_batch_size) * world_size
    of = "" if micro_batch_size is None else f"micro_batch_size ({micro_batch_size}) times "
    for name, size in (("batch_size", batch_size), ("batch_size_start", batch_size_start)):
        if size < 1 or unit < 1 or size % unit:
            raise InputError(
                f"{name} is {size}; it must be a multiple of {of}the number of ranks ({world_size})."
            )
    if batch_size_start > batch_size:
        raise InputError(
            f"batch_size_start is {batch_size_start}; expected at most batch_size, {batch_size}."
        )
    if batch_size_start < batch_size and ramp_steps < 1:
        raise InputError(
            f"batch_size_start is {batch_size_start}, below batch_size, but the batch grows over {ramp_steps} steps; "
            "expected at least 1."
        )
