"""The processes that train together, as torchrun starts them.

A process that was started alone is one rank of one, and nothing here touches the network then.
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
    """Another rank died; this one must not wait for it, nor save what only all ranks together can."""


@dataclass(frozen=True)
class Ranks:
    """Who we are among the processes of this training; `Ranks()` is one process alone.

    Attributes:
        rank: this process's number; 0 is the one that writes and prints.
        local_rank: its number on this machine.
        world_size: how many there are.
        local_world_size: how many on this machine.
        device: where this rank's model runs.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    device: torch.device = CPU

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, on their device."""
        if self.world_size > 1:
            values = values.clone()
            with peer_errors():
                dist.all_reduce(values)
        return values

    def max(self, number: int) -> int:
        """The largest `number` of any rank; through the CPU, so no GPU is waited for."""
        if self.world_size == 1:
            return number
        value = torch.tensor(number)
        with peer_errors():
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.max(0)

    def on_main(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 alone; every rank gets its result. Where it fails, the others end quietly.

        Raises:
            InputError, OSError: on rank 0, what `function` raised.
            SystemExit: 1, on the other ranks then.
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


ALONE = Ranks()


@contextmanager
def join(device: DeviceName) -> Iterator[Ranks]:
    """Meet the other processes that torchrun (or the deepspeed launcher) started; leave them at the end.

    Gloo carries what lies in the CPU's memory, NCCL what lies on GPUs.

    Raises:
        InputError: if this machine lacks the device, or has fewer GPUs than ranks; if a rank does not come.
        PeerLost: if another rank dies meanwhile.
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
            "device is mps, over which ranks cannot share a model; give --device cpu, or start one."
        )
    if place.type == "cuda":
        if number["LOCAL_RANK"] >= torch.cuda.device_count():
            raise InputError(
                f"Rank {number['RANK']} is the {number['LOCAL_RANK'] + 1}th on a machine with "
                f"{torch.cuda.device_count()} GPUs; start as many ranks as there are GPUs."
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
        # DDP's reducer must not be the last to hold the group: it would join gloo's threads without letting go of
        # Python's lock, for which they may wait to free the tensors of the last message (torch 2.13).
        gc.collect()
        dist.destroy_process_group()


def clear_frames(error: BaseException) -> None:
    """Let go of the local variables of all functions that `error`, and what it came of, has ended."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


@contextmanager
def end_at_once() -> Iterator[None]:
    """Round a door's function: a rank's process ends with it, without Python's own clearing up.

    Gloo's threads may outlive their group, and now and then abort a process that Python is taking down (torch 2.13),
    which a launcher takes for a failure of a training that is done and saved. A process alone ends as ever.
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
    """The place where ranks find one another's addresses, without those of ranks that were there before a restart.

    torchrun (torch 2.13) keeps one store over its restarts, and a rank that comes a moment too soon finds the address
    of a process that was killed, and waits for it for ever. So rank 0 names a part of the store after itself, and
    tells that name to every rank that it has heard of in this life.

    Raises:
        InputError: on rank 0, if another one has not come in the time that torch waits elsewhere, 30 minutes.
    """
    store, _, _ = next(rendezvous("env://"))
    me = uuid.uuid4().hex
    store.set(f"here/{rank}", me)
    if rank > 0:
        first = store.get(f"follow/{me}").decode()  # waits; no other process ever had this name
        store.set(f"followed/{first}/{rank}", "")
        return dist.PrefixStore(first, store)
    missing = set(range(1, world_size))
    end = time.monotonic() + store.timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            # Perhaps this is of a process that is gone: its successor overwrites it.
            if store.check([f"here/{other}"]):
                store.set(f"follow/{store.get(f'here/{other}').decode()}", me)
            if store.check([f"followed/{me}/{other}"]):
                missing.remove(other)
        if missing and time.monotonic() > end:
            raise InputError(
                f"{len(missing)} of {world_size} ranks did not come, rank {min(missing)} among them; see what they "
                "said, and start all of them again."
            )
        time.sleep(0.02)
    return dist.PrefixStore(me, store)


@contextmanager
def peer_errors() -> Iterator[None]:
    """Say in one sentence what torch.distributed says in many when another rank is gone.

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
            f"Another rank is gone ({reason}); this one ends without saving, and the last checkpoint stays. Start the "
            "training again to go on from it."
        ) from error
