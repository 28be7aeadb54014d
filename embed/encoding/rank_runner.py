"""Encoding on the ranks of torchrun: rank 0 sends blocks of texts, and encodes blocks itself, too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from embed.encoding.embedder import Embedder
from embed.encoding.runner import Encoded, Here, Runner, Texts, check_can_be_sent, encode_block
from gpt_core.common.errors import ExplainedError
from gpt_core.training.parallel.ranks import PeerLost, Ranks, join, peer_errors

# Longer than any run: ranks wait while rank 0 reads files. A rank that dies is noticed at once, by its connection.
PATIENCE = timedelta(days=365)


class RankRunner:
    """Rank 0's side: each round, every rank encodes one block."""

    def __init__(self, ranks: Ranks, group: dist.ProcessGroup) -> None:
        self.at_once = ranks.world_size
        self._group = group
        self._sent: Embedder | None = None
        self._in_round = False

    def encode(self, encoder: Embedder, blocks: Sequence[Texts]) -> list[Encoded]:
        """The vectors of each block, in order.

        Raises:
            PeerLost: if a rank has died.
            InputError: for an embedder without a folder.
        """
        if self._sent is None:
            check_can_be_sent(encoder)
            self._scatter([encoder] * self.at_once)
            self._sent = encoder
        encoded: list[Encoded] = []
        for start in range(0, len(blocks), self.at_once):
            encoded += self._round(blocks[start : start + self.at_once])
        return encoded

    def _round(self, blocks: Sequence[Texts]) -> list[Encoded]:
        """Encode at most one block per rank."""
        self._in_round = True
        self._scatter([*blocks, *[[]] * (self.at_once - len(blocks))])
        mine = _outcome(self._sent, blocks[0])
        outcomes: list[Any] = [None] * self.at_once
        with _lost_rank():
            dist.gather_object(mine, outcomes, dst=0, group=self._group)
        self._in_round = False
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes[: len(blocks)]

    def end(self) -> None:
        """Tell the other ranks that there is nothing left to encode.

        After an interruption in a round they expect something else; they end when this process does.
        """
        if not self._in_round:
            self._scatter([None] * self.at_once)

    def _scatter(self, messages: list[Any]) -> None:
        with _lost_rank():
            dist.scatter_object_list([None], messages, src=0, group=self._group)


@contextmanager
def rank_runner() -> Iterator[Runner | None]:
    """Join torchrun's ranks. Rank 0 gets the runner; the others encode what it sends, then get None.

    Raises:
        PeerLost: if another rank dies.
    """
    with join("cpu") as ranks:
        if ranks.world_size == 1:
            yield Here()
            return
        group = dist.new_group(timeout=PATIENCE, backend="gloo")
        if not ranks.main:
            _serve(group)
            yield None
            return
        runner = RankRunner(ranks, group)
        try:
            yield runner
        except PeerLost:
            raise  # the others notice by themselves
        except BaseException:
            with suppress(PeerLost):
                runner.end()
            raise
        runner.end()


def _serve(group: dist.ProcessGroup) -> None:
    """Encode the blocks that rank 0 sends, until it ends."""
    encoder: Embedder | None = None
    while True:
        received: list[Any] = [None]
        with _lost_rank():
            dist.scatter_object_list(received, None, src=0, group=group)
        if received[0] is None:
            return
        if isinstance(received[0], Embedder):
            encoder = received[0]
            continue
        with _lost_rank():
            dist.gather_object(_outcome(encoder, received[0]), dst=0, group=group)


def _outcome(encoder: Embedder | None, texts: Texts) -> Encoded | Exception | None:
    """The encoded block, or the error that rank 0 is to raise; None without texts."""
    assert encoder is not None  # rank 0 sends it first
    try:
        return encode_block(encoder, texts) if texts else None
    except (ExplainedError, OSError, FloatingPointError) as error:
        return error


@contextmanager
def _lost_rank() -> Iterator[None]:
    try:
        with peer_errors():
            yield
    except PeerLost as error:
        raise PeerLost(
            "Another rank died. Run the same command again; documents that were written are not encoded again."
        ) from error
