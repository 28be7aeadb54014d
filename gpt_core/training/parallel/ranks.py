"""Ranks: the processes of a training run, as torchrun starts them.

A process started without torchrun is a single rank with world size 1 and does not use the network.
"""

import gc
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from gpt_core.common.errors import ExplainedError, InputError
from gpt_core.hardware.device import DeviceName, pick_device

T = TypeVar("T")
CPU = torch.device("cpu")


class PeerLost(ExplainedError):
    """Another rank died. This rank must end without saving: a checkpoint needs all ranks."""


@dataclass(frozen=True)
class Ranks:
    """Rank, world size and device of this process; `Ranks()` is a single process.

    Attributes:
        rank: rank of this process; rank 0 writes and prints.
        local_rank: rank of this process on its machine.
        world_size: number of processes.
        local_world_size: number of processes on this machine.
        device: device of this rank's model.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    device: torch.device = CPU

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """All-reduce: the sum of `values` over all ranks, on the device of `values`."""
        if self.world_size > 1:
            values = values.clone()
            with peer_errors():
                dist.all_reduce(values)
        return values

    def max(self, number: int) -> int:
        """All-reduce: the maximum of `number` over all ranks; on the CPU, so it does not synchronise with the GPU."""
        if self.world_size == 1:
            return number
        value = torch.tensor(number)
        with peer_errors():
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        self.max(0)

    def on_main(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 only and broadcast its result; if it fails, the other ranks exit silently.

        Raises:
            InputError, OSError: on rank 0, the exception of `function`.
            SystemExit: with code 1 on the other ranks, if `function` raised.
        """
        if self.world_size == 1:
            return function()
        outcome: list[tuple[bool, T | None]] = [(False, None)]
        try:
            if self.main:
                outcome = [(True, function())]
        finally:
            with peer_errors():
                dist.broadcast_object_list(outcome, device=torch.device("cpu"))
        done, result = outcome[0]
        if not done:
            sys.exit(1)
        return result  # type: ignore[return-value]


ALONE = Ranks()  # a single process


@contextmanager
def join(device: DeviceName) -> Iterator[Ranks]:
    """Context manager: join the process group of torchrun (or the deepspeed launcher) and destroy it at the end.

    CPU tensors are sent with gloo, GPU tensors with NCCL.

    Raises:
        InputError: if this machine lacks the device or has fewer GPUs than ranks, or if a rank does not join in time.
        PeerLost: if another rank dies.
    """
    place = pick_device(device)
    if "RANK" not in os.environ:
        yield Ranks(device=place)
        return
    n_local = os.environ.get("LOCAL_SIZE", 1)  # the deepspeed launcher's name for LOCAL_WORLD_SIZE
    number = {
        name: int(os.environ.get(name, default))
        for name, default in (
            ("RANK", 0),
            ("LOCAL_RANK", 0),
            ("WORLD_SIZE", 1),
            ("LOCAL_WORLD_SIZE", n_local),
        )
    }
    backend = "gloo"
    if place.type == "mps" and number["WORLD_SIZE"] > 1:
        raise InputError(
            "device is mps, which does not support several ranks; use --device cpu, or start one process."
        )
    if place.type == "cuda":
        if number["LOCAL_RANK"] >= torch.cuda.device_count():
            raise InputError(
                f"Rank {number['RANK']} has local rank {number['LOCAL_RANK']}, but this machine has "
                f"{torch.cuda.device_count()} GPUs; start at most one rank per GPU."
            )
        backend = "cpu:gloo,cuda:nccl"
        place = torch.device("cuda", number["LOCAL_RANK"])
        torch.cuda.set_device(place)
    with peer_errors():
        dist.init_process_group(
            backend,
            store=fresh_store(number["RANK"], number["WORLD_SIZE"]),
            rank=number["RANK"],
            world_size=number["WORLD_SIZE"],
            device_id=place if place.type == "cuda" else None,
        )
    try:
        with peer_errors():
            yield Ranks(
                number["RANK"],
                number["LOCAL_RANK"],
                number["WORLD_SIZE"],
                number["LOCAL_WORLD_SIZE"],
                place,
            )
    except BaseException as error:
        clear_frames(error)
        raise
    finally:
        # Collect DDP's reducer first. If it held the last reference to the group, it would join gloo's threads with
        # the GIL held, while these may wait for the GIL to free the last message's tensors: a deadlock (torch 2.13).
        gc.collect()
        dist.destroy_process_group()


def clear_frames(error: BaseException) -> None:
    """Free the local variables in the traceback frames of `error` and of its causes."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


@contextmanager
def end_at_once() -> Iterator[None]:
    """Context manager around a command: under torchrun, exit with `os._exit`, without Python's shutdown.

    Gloo's threads may outlive their process group and sometimes abort the process during Python's shutdown (torch
    2.13); the launcher would report a failure although training is done and saved. A single process exits normally.
    """
    code: int | str | None = 0
    try:
        yield
    except SystemExit as error:
        code = error.code
        if "RANK" not in os.environ:
            raise
    if "RANK" in os.environ:
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def fresh_store(rank: int, world_size: int) -> dist.Store:
    """The rendezvous store with a fresh key prefix, without addresses of ranks from before a restart.

    torchrun (torch 2.13) reuses one store across restarts: a rank that starts early may read the address of a killed
    process and wait for it forever. So rank 0 creates a random prefix and sends it to every rank of this restart.

    Raises:
        InputError: on rank 0, if another rank does not join within torch's timeout of 30 minutes.
    """
    store, _, _ = next(rendezvous("env://"))
    me = uuid.uuid4().hex
    store.set(f"here/{rank}", me)
    if rank > 0:
        first = store.get(f"follow/{me}").decode()  # blocks; the name is unique to this process
        store.set(f"followed/{first}/{rank}", "")
        return dist.PrefixStore(first, store)
    missing = set(range(1, world_size))
    end = time.monotonic() + store.timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            # This may be the name of a killed process; its successor overwrites the key.
            if store.check([f"here/{other}"]):
                store.set(f"follow/{store.get(f'here/{other}').decode()}", me)
            if store.check([f"followed/{me}/{other}"]):
                missing.remove(other)
        if missing and time.monotonic() > end:
            raise InputError(
                f"{len(missing)} of {world_size} ranks did not join, among them rank {min(missing)}; check their "
                "output, and start all ranks again."
            )
        time.sleep(0.02)
    return dist.PrefixStore(me, store)


@contextmanager
def peer_errors() -> Iterator[None]:
    """Context manager: replace torch.distributed's errors for a lost rank by a one-sentence message.

    Raises:
        PeerLost: instead of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        reason = str(error).partition(". ")[0].rstrip(".")
        raise PeerLost(
            f"Another rank died ({reason}); this rank ends without saving. Start the training again to resume from "
            "the last checkpoint."
        ) from error
