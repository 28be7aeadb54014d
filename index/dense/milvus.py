"""A copy of an index's vectors in a collection of Milvus: a server, or a file of Milvus Lite.

`COLLECTION` has the mapped vectors by passage id. `COLLECTION_state` has one row: which state of which index the copy
is of. It is written after the vectors, so that a copy whose writer was killed is brought up to date again.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from embed.data.vectors import Vectors
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from index.dense.block import Block
from index.dense.manifest import State
from index.store.store import Numbers

TOKEN_VARIABLE = "ZHIZHI_MILVUS_TOKEN"
MAX_K = 16_384  # the most hits of a search that a server gives
ROWS_PER_REQUEST = 4096  # a server takes 64 MB
SECONDS_TO_CONNECT = 10


class Address(NamedTuple):
    """Where a copy is: `text` as the user gave it, the URI for pymilvus, and the collection."""

    text: str
    uri: str
    collection: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse milvus://HOST:PORT/COLLECTION or milvus:///PATH/FILE.db.

        Raises:
            InputError: for any other text.
        """
        if file := re.fullmatch(r"milvus://(/.+\.db)", text):
            return cls(text, file[1], "zhizhi")
        if server := re.fullmatch(
            r"milvus://([\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+)/([A-Za-z_]\w{0,200})", text, re.A
        ):
            return cls(text, f"http://{server[1]}", server[2])
        raise InputError(
            f"store is {text!r}; expected faiss, milvus://HOST:PORT/COLLECTION with a collection of letters, digits "
            "and _, or milvus:///PATH/FILE.db."
        )


class MilvusError(InputError):
    """Milvus cannot be reached, or refuses a request."""


class MilvusCopy:
    """The copy at an address; connects at once.

    Raises:
        MilvusError: from all methods, if the server cannot be reached or refuses a request.
        MissingPackage: if pymilvus is not installed.
    """

    def __init__(self, address: Address) -> None:
        with extra("milvus"):
            import pymilvus
        for name in ("pymilvus", "milvus_lite", "grpc"):  # they print errors, which are raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._address, self._states = address, f"{address.collection}_state"
        self._types, self._error = pymilvus.DataType, pymilvus.MilvusException
        with self._explained():
            token = os.environ.get(TOKEN_VARIABLE, "")
            self._client: Any = pymilvus.MilvusClient(address.uri, token=token, timeout=SECONDS_TO_CONNECT)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def state(self) -> State | None:
        """The state that the copy is of; None if there is no whole copy."""
        with self._explained():
            if not all(map(self._client.has_collection, (self._states, self._address.collection))):
                return None
            rows = self._client.query(self._states, filter="number == 0", output_fields=["state"])
        try:
            return State(**json.loads(rows[0]["state"])) if rows else None
        except (ValueError, TypeError):  # a collection of another program
            return None

    def forget(self) -> None:
        """Make the copy one that is not whole, so that the next step is to rebuild it."""
        with self._explained():
            if self._client.has_collection(self._states):
                self._client.delete(self._states, ids=[0])

    def rebuild(self, state: State, dimension: int, blocks: Iterable[Block]) -> None:
        """Make the copy anew, of all passages in `blocks`.

        Raises:
            InputError: also if the collection is not a copy of an index.
        """
        with self._explained():
            there = self._client.has_collection(self._address.collection)
            if there and not self._client.has_collection(self._states):
                raise InputError(
                    f"{self._address.text}: the collection has data of another program; give another name."
                )
            self.forget()
            if not self._client.has_collection(self._states):
                self._create(self._states, 2, with_state=True)
            if there:
                self._client.drop_collection(self._address.collection)
            self._create(self._address.collection, dimension)
        self.update(state, blocks, np.empty(0, dtype=np.int64))

    def update(self, state: State, added: Iterable[Block], deleted: Numbers) -> None:
        """Bring the copy to `state`; doing it twice changes nothing."""
        with self._explained():
            for block in added:
                for i in range(0, len(block), ROWS_PER_REQUEST):
                    part = slice(i, i + ROWS_PER_REQUEST)
                    pairs = zip(block.numbers[part].tolist(), block.vectors[part], strict=True)
                    rows = [{"number": number, "vector": vector} for number, vector in pairs]
                    self._client.upsert(self._address.collection, rows)
            for i in range(0, len(deleted), ROWS_PER_REQUEST):
                self._client.delete(self._address.collection, ids=deleted[i : i + ROWS_PER_REQUEST].tolist())
            row = {"number": 0, "vector": [1.0, 0.0], "state": json.dumps(asdict(state))}
            self._client.upsert(self._states, [row])

    def nearest(self, queries: Vectors, k: int, allowed: Numbers | None) -> list[Numbers]:
        """The ids of about k nearest passages for each query (Q, d), at most `MAX_K`, among `allowed` (None: all)."""
        among = "" if allowed is None else f"number in {allowed.tolist()}"
        with self._explained():
            results = self._client.search(
                self._address.collection,
                list(queries),
                filter=among,
                limit=min(k, MAX_K),
                output_fields=["number"],
                consistency_level="Strong",
            )
        return [np.array([hit["number"] for hit in hits], dtype=np.int64) for hits in results]

    def _create(self, name: str, dimension: int, *, with_state: bool = False) -> None:
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("number", self._types.INT64, is_primary=True)
        schema.add_field("vector", self._types.FLOAT_VECTOR, dim=dimension)
        if with_state:
            schema.add_field("state", self._types.VARCHAR, max_length=1024)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
        self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            reason = " ".join(str(getattr(error, "message", error)).split())[:200].rstrip(".")
            raise MilvusError(
                f"{self._address.text} cannot be used ({reason}). Start the Milvus server, or choose the built-in "
                "search with manage_index.py snapshot --store faiss."
            ) from None
