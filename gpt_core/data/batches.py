"""Windows of tokens and training batches. The order of windows is a pure function of (seed, epoch, position).

nanoGPT draws windows at random with replacement and draws the same ones again after a resume. Here an epoch is a
pseudo-random permutation of all windows, computed per position: it needs no memory, a resume needs one integer, and
n ranks together see the same windows as one rank alone.
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

IGNORED = -100  # target id that the loss ignores
EVAL_TOKENS = 2**14  # tokens per forward pass of an evaluation
ROWS_PER_RELEASE = 2**10  # rows read between two releases of mapped pages; each row maps up to 0.4 MB


@dataclass(frozen=True)
class _Runs:
    """The runs of tokens of one shard that no window crosses: its documents, or the whole shard.

    Attributes:
        tokens: (n_tokens,) the shard's ids.
        starts: (n_runs,) offset of each run's first token.
        stops: (n_runs,) cumulative number of windows up to and including each run.
    """

    tokens: NDArray
    starts: NDArray
    stops: NDArray


class Windows:
    """All non-overlapping windows of up to `block_size` consecutive targets over some shards.

    Every token of a shard but its first is a target in exactly one window; a shard's last window may be shorter.

    Args:
        shards: the data.
        block_size: targets in a full window.
        align_documents: no window spans two documents. A window begins at a document's first token or where the
            document's previous window ended; a document's first token is not a target, and its last window may be
            shorter. Takes 8 to 16 bytes of memory per document.

    Raises:
        InputError: if the shards hold no targets, or align_documents is set and a shard has no document offsets.
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
        # shard s has windows self._ends[s - 1] to self._ends[s] - 1
        self._ends = np.cumsum([int(runs.stops[-1]) if len(runs.stops) else 0 for runs in self._runs])
        self._unreleased = 0  # rows read since the last release of mapped pages
        if not len(self):
            raise InputError(
                f"{shards[0].path} holds {'no document of two tokens' if align_documents else 'fewer than two tokens'}"
                ", so there is nothing to predict; prepare the data from more text."
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def checksum(self) -> str:
        """sha256 over the checksums of the shards, in hex."""
        return hashlib.sha256(b"".join(shard.checksum for shard in self.shards)).hexdigest()

    def __getitem__(self, index: int) -> NDArray:
        """(n + 1,) ids of window `index`: the first n are the inputs, the last n their targets, n ≤ block_size."""
        shard, start, n_targets = self.locate(index)
        return self.shards[shard].tokens[start : start + n_targets + 1]

    def locate(self, index: int) -> tuple[int, int, int]:
        """Location of window `index`: index of the shard, offset of its first token there, number of targets."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        starts, counts = self._spans(shard, np.array([index - first]))
        return shard, int(starts[0]), int(counts[0])

    def _spans(self, shard: int, indices: NDArray) -> tuple[NDArray, NDArray]:
        """Offsets of the first token and target counts of windows; `indices` count from the shard's first window."""
        runs = self._runs[shard]
        run = np.searchsorted(runs.stops, indices.astype(runs.stops.dtype), side="right")
        before = np.where(run > 0, runs.stops[run - 1], 0).astype(np.int64)
        starts = runs.starts[run] + (indices - before) * self.block_size
        last = run + 1 == len(runs.starts)
        ends = np.where(last, len(runs.tokens), runs.starts[np.where(last, 0, run + 1)]).astype(np.int64)
        return starts, np.minimum(ends - starts - 1, self.block_size)

    def rows(self, indices: Sequence[int] | NDArray) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) int64 of these windows; short windows are padded with id 0 and target IGNORED."""
        chosen = np.asarray(indices, dtype=np.int64)
        shards = np.searchsorted(self._ends, chosen, side="right")
        window = np.arange(self.block_size + 1)
        both = np.empty((len(chosen), self.block_size + 1), np.int64)
        counts = np.empty(len(chosen), np.int64)
        for shard in np.unique(shards):
            mine = np.flatnonzero(shards == shard)
            first = int(self._ends[shard - 1]) if shard else 0
            starts, counts[mine] = self._spans(int(shard), chosen[mine] - first)
            tokens = np.asarray(self._runs[shard].tokens)  # gathers faster from an ndarray than from a memmap
            both[mine] = tokens.take(starts[:, None] + window, mode="clip")
        ids, targets = both[:, :-1].copy(), both[:, 1:]
        if (counts < self.block_size).any():
            lacking = window[:-1] >= counts[:, None]
            ids[lacking], targets[lacking] = 0, IGNORED
        self._release(len(chosen))
        return torch.from_numpy(ids), torch.from_numpy(targets.copy())

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All windows once, in the order of the text, in batches of `batch_size`, for evaluation."""
        for start in range(0, len(self), batch_size):
            yield self.rows(range(start, min(start + batch_size, len(self))))

    def _release(self, n_rows: int) -> None:
        """Bound this process's resident memory by unmapping the pages that were read.

        A mapped page counts as resident until the kernel reclaims it, so training on a large file looks like a memory
        leak. The pages are page cache, shared by all ranks, but container limits count them. Unmapping leaves them in
        the page cache and keeps the resident memory that reading adds below 0.5 GB.
        """
        self._unreleased += n_rows
        if self._unreleased < ROWS_PER_RELEASE:
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
            "with scripts/prepare_data.py, or unset align_documents."
        )
    return shard.documents().astype(np.int64)


class Batches:
    """The endless stream of training batches; one item is this rank's list of micro-batches for one step.

    A thread prepares the next step's micro-batches while this step is computed. The thread starts at the first step,
    because a fork does not copy threads; a process forked later starts a new one.

    Args:
        windows: the data.
        batch_size: windows per step over all ranks.
        micro_batch_size: windows per forward pass on one rank; None: all of the rank's windows of a step.
        seed: seed of the order.
        rank: this process's rank.
        world_size: number of ranks.
        device: where the tensors go.
        batch_size_start: windows in the first step, when the batch grows linearly; None: batch_size.
        ramp_steps: number of steps until the batch has grown to batch_size. Sizes in between are rounded down to a
            multiple of micro_batch_size · world_size, so only the number of micro-batches changes, not their shape.

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
        self.position = 0  # windows that all ranks together have seen since step 0
        self.step = 0  # steps done
        self._worker: tuple[int, ThreadPoolExecutor] | None = None  # process id, executor
        self._ahead: tuple[tuple[int, int], Future[list[tuple[Tensor, Tensor]]]] | None = None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> list[tuple[Tensor, Tensor]]:
        """This step's micro-batches: inputs and targets (micro_batch_size, T) int64.

        Raises:
            OSError, InputError: errors of the thread; the position of the stream is unchanged.
        """
        here = (self.position, self.step)
        following = (self.position + self.size_of_step(self.step), self.step + 1)
        worker = self._own_worker()
        if self._ahead is None or self._ahead[0] != here:
            self._ahead = (here, worker.submit(self._make, *here))
        future = self._ahead[1]
        self._ahead = None  # if it failed, the next call retries
        micro_batches = future.result()
        self._ahead = (following, worker.submit(self._make, *following))
        self.position, self.step = following
        # Copies from pinned memory overlap with GPU computation; the current stream orders them.
        return [
            (ids.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True))
            for ids, targets in micro_batches
        ]

    def close(self) -> None:
        """End the thread; the position is unchanged, and a further step starts a new thread."""
        if self._worker is not None and self._worker[0] == os.getpid():
            self._worker[1].shutdown(cancel_futures=True)
        self._worker = self._ahead = None

    def _own_worker(self) -> ThreadPoolExecutor:
        if self._worker is None or self._worker[0] != os.getpid():  # a fork does not copy threads
            self._ahead = None
            begin = None
            if self.device.type == "cuda":  # pinned memory is allocated for the thread's current GPU
                index = torch.cuda.current_device() if self.device.index is None else self.device.index
                begin = partial(torch.cuda.set_device, index)
            worker = ThreadPoolExecutor(1, "batches", initializer=begin)
            self._worker = (os.getpid(), worker)
        return self._worker[1]

    def _make(self, position: int, step: int) -> list[tuple[Tensor, Tensor]]:
        """The micro-batches of the step that begins at `position`, on the CPU."""
        share = self.size_of_step(step) // self.world_size
        first = position + self.rank * share
        indices = self.order(np.arange(first, first + share))
        size = self.micro_batch_size or share
        micro_batches = [self.windows.rows(indices[start : start + size]) for start in range(0, share, size)]
        if self.device.type == "cuda":
            return [(ids.pin_memory(), targets.pin_memory()) for ids, targets in micro_batches]
        return micro_batches

    def size_of_step(self, step: int) -> int:
        """Windows of all ranks in the step after `step` steps."""
        if step >= self.ramp_steps:
            return self.batch_size
        unit = (self.micro_batch_size or 1) * self.world_size
        size = self.batch_size_start + (self.batch_size - self.batch_size_start) * step // self.ramp_steps
        return size // unit * unit

    def order(self, positions: NDArray) -> NDArray:
        """Indices of the windows at these positions of the endless stream."""
        return endless_order(positions, len(self.windows), self.seed)[0]

    def describe(self, step: int) -> str:
        """Describe the windows that all ranks saw in step `step` (from 1), for messages.

        Assumes that all steps since then had this run's batch sizes.
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
        """The position after the last step taken, and what identifies the data."""
        return {
            "position": self.position, "step": self.step, "seed": self.seed, "n_windows": len(self.windows),
            "data_checksum": self.windows.checksum,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the batch size and the number of ranks may differ from those at saving.

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
    """Check that every step can be divided into equal micro-batches over the ranks.

    Raises:
        InputError: naming the size that is not a multiple of micro_batch_size · world_size.
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
            "expected at least 1 step."
        )
