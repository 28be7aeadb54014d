"""The description of a snapshot: `snapshot.json`."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from index.dense.ann import FLAT, Search, Wanted
from index.dense.checksums import Checksums

MANIFEST, FORMAT = "snapshot.json", 2


@dataclass(frozen=True)
class State:
    """The state of an index that a snapshot was made from.

    Attributes:
        identity: identity of the index.
        map_hash: hash of the corpus map that was applied to the vectors.
        sequence: sequence number of the last change included.
    """

    identity: str
    map_hash: str
    sequence: int

    def is_of_same_index(self, other: "State") -> bool:
        """Whether both states are of one index with one corpus map."""
        return (self.identity, self.map_hash) == (other.identity, other.map_hash)


class Manifest(NamedTuple):
    """What `snapshot.json` says."""

    state: State
    folder: str
    wanted: Wanted
    search: Search
    files: dict[str, Checksums]

    def to_json(self) -> str:
        """As JSON, with a checksum of its own."""
        content = {
            "format": FORMAT,
            "folder": self.folder,
            **asdict(self.state),
            "wanted": self.wanted._asdict(),
            "search": asdict(self.search),
            "files": {name: asdict(sums) for name, sums in self.files.items()},
        }
        return json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The manifest in an index's folder; None if there is none, it is damaged, or its files are not all there."""
        try:
            content = json.loads((folder / MANIFEST).read_text())
            if content.pop("sha256") != _digest(content) or content["format"] != FORMAT:
                return None
            state = State(*(content[name] for name in ("identity", "map_hash", "sequence")))
            files = {
                name: Checksums(sums["size"], tuple(sums["blocks"]))
                for name, sums in content["files"].items()
            }
            manifest = cls(
                *(state, content["folder"], Wanted(**content["wanted"])),
                *(Search.from_json(content["search"]), files),
            )
            whole = all(sums.is_size_of(folder / manifest.folder / name) for name, sums in files.items())
            return manifest if whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @staticmethod
    def is_older(folder: Path) -> bool:
        """Whether the manifest in an index's folder is of an older format, whose snapshot is not used any more."""
        try:
            return int(json.loads((folder / MANIFEST).read_text()).get("format", 1)) < FORMAT
        except (OSError, ValueError, TypeError, AttributeError):
            return False

    def report(self) -> dict[str, Any]:
        """For users: type, recall and parameters, JSON-serialisable."""
        search = self.search
        tuned = zip(search.efforts, search.recalls, strict=True)
        return {
            "type": search.type,
            "sequence": self.state.sequence,
            **({"note": search.note} if search.note else {}),
            "recall": {f"@{effort.k}": round(recall, 4) for effort, recall in tuned} or 1.0,
            "parameters": [asdict(effort) for effort in search.efforts],
            "bytes": {name: sums.size for name, sums in self.files.items()},
        }


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe(report: dict[str, Any] | None) -> str:
    """What `LiveVectors.report` says, in one line."""
    if report is None:
        return "no snapshot of the vectors could be written"
    if "recall" not in report:
        return f"the vectors are searched with {report['type']}"
    if report["type"] == FLAT:
        return (
            f"the vectors are searched exactly; {report['note']}"
            if "note" in report
            else "the vectors are searched exactly"
        )
    recalls = ", ".join(f"recall{k} {value:.3f}" for k, value in report["recall"].items())
    return f"the vectors are searched with {report['type']}, {recalls}"
