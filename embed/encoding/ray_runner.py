"""Encoding on the workers of Ray: one actor per CPU of the cluster, each with a copy of the embedder."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from embed.encoding.embedder import Embedder
from embed.encoding.runner import Encoded, Texts, check_can_be_sent, encode_block
from gpt_core.common.errors import ExplainedError
from gpt_core.common.extras import extra

BLOCKS_PER_ACTOR = 4  # at once: actors take the next block when they are done, so that long texts balance
# A block whose worker dies is encoded again, by a new worker.
RETRIES = 3


class RayRunner:
    """Encodes on the cluster of the environment variable RAY_ADDRESS, else on a new one of this machine's CPUs."""

    def __init__(self) -> None:
        """Prepare to connect, which happens when there is something to encode; MissingPackage without Ray."""
        with extra("ray"):
            import ray
        self._ray = ray
        self._pool: Any = None

    @cached_property
    def _n_actors(self) -> int:
        # Without the log of every worker on stderr.
        self._ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    @property
    def at_once(self) -> int:
        """Number of blocks that occupy all actors."""
        return self._n_actors * BLOCKS_PER_ACTOR

    def encode(self, encoder: Embedder, blocks: Sequence[Texts]) -> list[Encoded]:
        """The vectors of each block, in order.

        Raises:
            InputError: for an embedder without a folder, or what an actor raised.
            ExplainedError: if the cluster's workers die again and again.
        """
        if self._pool is None:
            check_can_be_sent(encoder)
            self._pool = self._started(encoder)
        try:
            return list(self._pool.map(lambda actor, block: actor.encode.remote(block), blocks))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise ExplainedError(
                f"Ray failed ({type(error).__name__}; {RETRIES} retries did not help). Run the same command again; "
                "documents that were written are not encoded again."
            ) from error

    def end(self) -> None:
        """Stop the actors, and the cluster if it was started here."""
        self._ray.shutdown()

    def _started(self, encoder: Embedder) -> Any:
        from ray.util import ActorPool

        remote = self._ray.remote(num_cpus=1, max_restarts=RETRIES, max_task_retries=RETRIES)(_Actor)
        self._sent = self._ray.put(encoder)  # kept for actors that are started again
        return ActorPool([remote.remote(self._sent) for _ in range(self._n_actors)])


class _Actor:
    def __init__(self, encoder: Embedder) -> None:
        self._encoder = encoder

    def encode(self, texts: Texts) -> Encoded:
        return encode_block(self._encoder, texts)


@contextmanager
def ray_runner() -> Iterator[RayRunner]:
    """Connect to Ray, and disconnect at the end.

    Raises:
        MissingPackage: if Ray is not installed.
    """
    runner = RayRunner()
    try:
        yield runner
    finally:
        runner.end()
