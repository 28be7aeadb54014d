"""Published scores that an evaluation must reproduce before it prints anything, by checksum of model and data."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpt_core.common.errors import InputError


@dataclass(frozen=True)
class Published:
    """A published score, and the largest deviation accepted as a correct reproduction."""

    score: float
    tolerance: float


BM25S = "bm25s"  # not a file: `embed.data.bm25` fixes its settings
MINILM = "051e2de600e464d2f66052ac018382016233c6b46fc08eef90eb7126144883de"  # all-MiniLM-L6-v2
SCIFACT_TEST = "445774b9335f59f858b446347068dbd57381e50b0da260c2be68803deecc872d"
NFCORPUS_TEST = "fc1fa244eecabafc6168586d7ec4976055da8b274a386da6597fad8b4af16386"
STSB_TEST = "35a00e6907cdeb3dacfbccc9272d7dc90d1b0f90738597e034db214e3dc83b7f"  # the STS benchmark, English
# (`BM25S` or `files_sha256` of a model, `content_sha256` of the data) → nDCG@10 or Spearman in MTEB's tables
PUBLISHED = {
    (MINILM, SCIFACT_TEST): Published(0.645, 0.01),
    (MINILM, NFCORPUS_TEST): Published(0.316, 0.01),
    (MINILM, STSB_TEST): Published(0.8203, 0.0005),
    (BM25S, SCIFACT_TEST): Published(0.687, 0.02),
    (BM25S, NFCORPUS_TEST): Published(0.321, 0.02),
}


def content_sha256(records: Iterable[Sequence[str]]) -> str:
    """Checksum of evaluation data: of its records in any order, with every run of white space as one space."""
    plain = sorted([" ".join(value.split()) for value in record] for record in records)
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def check_published(
    system: str | None, data_sha256: str, metric: str, score: float, *, model: str, data: str
) -> None:
    """Check that a known system reproduces its published score on known data; others are not checked.

    Args:
        system: `BM25S`, or `files_sha256` of the model's folder; None: not checked.
        data_sha256: `content_sha256` of the data.
        metric: name of the metric.
        score: the score reached.
        model, data: names for the message, as the user gave them.

    Raises:
        InputError: if the score deviates by more than the tolerance.
    """
    published = PUBLISHED.get((system or "", data_sha256))
    if published and abs(score - published.score) > published.tolerance:
        raise InputError(
            f"{model} reaches {metric} {score:.4f} on {data}, but {published.score} is published for this model and "
            "this data. The evaluation does not reproduce it, so nothing is printed; check the model's settings and "
            "--max_tokens."
        )
