"""The models of an evaluation ("contenders"): a baseline, the untrained GPT with several poolings, and the embedder."""

from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch

from embed.data.vectors import Vectors, unit_length
from embed.encoding.embedder import PromptName
from embed.encoding.encoder import Dtype, Encoder
from embed.encoding.fingerprint import files_sha256
from embed.encoding.peer_model import Teacher
from embed.encoding.vector_cache import cached_vectors
from embed.formats.folder import load_gpt, model_folder
from embed.network.config import EmbedderConfig, Pooling
from embed.network.corpus_map import CorpusMap
from embed.network.pooling import pool
from embed.network.quantize import dequantize_embeddings, fit_ranges, quantize_embeddings
from gpt_core.hardware.device import DeviceName, Numerics, pick_device
from gpt_core.hub.locate import resolve
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

OF_BASE = {"random", "raw-mean", "raw-weightedmean"}  # slow rows, which are usual only if a base is named
OF_EMBEDDER = {"unmapped", "int8", "dims"}  # rows of further variants of the embedder's vectors
Name = Literal["baseline", "random", "floor", "raw-mean", "raw-weightedmean", "dense"]
Compute = Callable[[Sequence[str], PromptName | None], Vectors]

FLOOR_CONFIG = EmbedderConfig(Pooling("mean", layer=0), corpus_map="whiten", map_components=256)


@dataclass(frozen=True)
class Contender:
    """A model of an evaluation.

    Attributes:
        name: name of its table rows.
        model: the model's name or folder.
        encode: (n texts, name of the prompt to prepend or None) → unit vectors (n, d) float32, cached on disk.
        n_cut: like `encode`, but returns how many texts exceed the model's maximum length.
        config: its settings, of which the corpus map and the fusion are used.
        weights_sha256: for a baseline, `files_sha256` of its folder, by which published scores are looked up.
    """

    name: Name
    model: str
    encode: Compute
    n_cut: Callable[[Sequence[str], PromptName | None], int]
    config: EmbedderConfig
    weights_sha256: str | None = None


@dataclass(frozen=True)
class Variant:
    """A contender's vectors in the form that a search index stores.

    Attributes:
        name: the contender's name, or "int8" or "dim-128" for the embedder's compressed vectors.
        queries: (Q, d) unit vectors of the queries, after the corpus map.
        stored: (n, d) unit vectors of the documents, after the corpus map.
        bytes_each: size of a stored vector in bytes.
    """

    name: str
    queries: Vectors
    stored: Vectors
    bytes_each: int


def names_of(rows: Collection[str]) -> list[Name]:
    """The contenders that these table rows need; those of OF_EMBEDDER need the embedder ("dense")."""
    return [name for name in get_args(Name) if name in rows or (name == "dense" and OF_EMBEDDER & set(rows))]


def contenders(
    names: Sequence[Name],
    *,
    embedder: str,
    base: str | None,
    baseline: str,
    max_tokens: int,
    device: DeviceName = "cpu",
    dtype: Dtype = "float32",
) -> Iterator[Contender]:
    """The models of an evaluation, each loaded when the iteration reaches it.

    "baseline" is a sentence-transformers model. "random" is a GPT of the base's shape with random weights (seed 0);
    "raw-mean" and "raw-weightedmean" pool the base's last layer; "floor" is the mean of its token embeddings, whitened
    to 256 dimensions, a lower bound that costs almost nothing. "dense" is the embedder.

    Args:
        names: the models to load; they are yielded in the order above.
        embedder: a model folder, a run's out_dir, or a known name.
        base: the GPT that the embedder was trained from, in the same forms; None: the embedder's own GPT.
        baseline: a known name or a folder.
        max_tokens: longest text, in each model's own tokens.
        device: device of the models.
        dtype: dtype of the GPTs' matrix products. A baseline on a CPU uses float32 or bfloat16, whichever is faster.
    """
    place = pick_device(device)
    if "baseline" in names:
        teacher = Teacher(baseline, max_tokens, place.type)
        yield Contender(
            "baseline",
            baseline,
            teacher.encode,
            teacher.count_cut,
            EmbedderConfig(),
            files_sha256(teacher.folder),
        )
    raw: list[Name] = [name for name in names if name in ("raw-mean", "raw-weightedmean")]
    if "random" in names or "floor" in names or raw:
        source = base or embedder
        folder = resolve(source)
        gpt, tokenizer = load_gpt(folder).to(place), Tokenizer.from_pretrained(model_folder(folder))
        if "random" in names:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                blank = GPT(gpt.config).to(place)
            encoder = Encoder(blank, tokenizer, EmbedderConfig(), dtype=dtype)
            yield _contender("random", source, encoder, max_tokens)
        if raw:
            encoder = Encoder(gpt, tokenizer, EmbedderConfig(), dtype=dtype)
            yield from _raw(raw, source, encoder, max_tokens)
        if "floor" in names:
            yield _contender("floor", source, Encoder(gpt, tokenizer, FLOOR_CONFIG, dtype=dtype), max_tokens)
    if "dense" in names:
        encoder = Encoder.from_pretrained(embedder, dtype=dtype, device=device)
        yield _contender("dense", embedder, encoder, max_tokens)


def _contender(name: Name, model: str, encoder: Encoder, max_tokens: int) -> Contender:
    def compute(texts: Sequence[str], role: PromptName | None) -> Vectors:
        return encoder.encode(texts, role, max_tokens=max_tokens)

    return _cached(name, model, encoder, max_tokens, "", compute, encoder.config)


def _raw(names: Sequence[Name], model: str, encoder: Encoder, max_tokens: int) -> Iterator[Contender]:
    """Mean and weighted mean of the last layer, computed by one forward pass."""
    poolings: dict[Name, Pooling] = {
        "raw-mean": Pooling("mean"),
        "raw-weightedmean": Pooling("weightedmean"),
    }
    width = encoder.model.config.n_embd

    @torch.inference_mode()
    def both(texts: Sequence[str], role: PromptName | None) -> Vectors:
        """(n, 2 · width): the two unit vectors concatenated."""
        vectors = np.zeros((len(texts), 2, width), dtype=np.float32)
        for places, ids, mask in encoder.batches(texts, max_tokens):
            with Numerics(encoder.model.device.type, encoder.dtype).autocast():
                hidden = encoder.model(ids, logits=False).hidden
            for i, pooling in enumerate(poolings.values()):
                vectors[places, i] = pool(hidden, ids, mask, pooling).cpu().numpy()
        return unit_length(vectors.reshape(-1, width)).reshape(len(texts), 2 * width)

    side_by_side = _cached("raw-mean", model, encoder, max_tokens, "both means", both, encoder.config)

    def half(i: int) -> Compute:
        return lambda texts, role: np.ascontiguousarray(
            side_by_side.encode(texts, role).reshape(-1, 2 * width)[:, i * width : (i + 1) * width]
        )

    for i, (name, pooling) in enumerate(poolings.items()):
        if name in names:
            yield replace(side_by_side, name=name, encode=half(i), config=EmbedderConfig(pooling))


def _cached(
    name: Name,
    model: str,
    encoder: Encoder,
    max_tokens: int,
    what: str,
    compute: Compute,
    config: EmbedderConfig,
) -> Contender:
    """A contender whose vectors are saved in the vector cache; `what` distinguishes poolings in the cache key."""

    def encode(texts: Sequence[str], role: PromptName | None) -> Vectors:
        prompt = encoder.prompt(role) if role else ""
        identity = f"{encoder.fingerprint} {max_tokens} {encoder.dtype} {prompt!r} {what}"
        return cached_vectors(identity, texts, lambda block: compute(block, role), f"encoding by {model}")

    def n_cut(texts: Sequence[str], role: PromptName | None) -> int:
        limit = min(max_tokens, encoder.max_tokens)
        return sum(n > limit for n in encoder.count_tokens(texts, encoder.prompt(role) if role else ""))

    return Contender(name, model, encode, n_cut, config)


def variants(
    contender: Contender, queries: Vectors, documents: Vectors, rows: Container[str], dims: Sequence[int]
) -> Iterator[Variant]:
    """A contender's vectors after its corpus map; for the embedder also the variants that `rows` asks for.

    Args:
        contender: the model of the vectors.
        queries: (Q, d) unit vectors.
        documents: (n, d) unit vectors, on which the corpus map and the int8 ranges are fitted.
        rows: "unmapped": without the corpus map, if the embedder has one; "int8": int8 documents and float32 queries;
            "dims": truncated and renormalised.
        dims: dimensions of "dims"; values from d on are skipped.
    """
    dimension = documents.shape[1]
    yield _mapped(contender.name, contender.config, queries, documents)
    if contender.name != "dense":
        return
    if "unmapped" in rows and contender.config.corpus_map != "none":
        yield _mapped("unmapped", replace(contender.config, corpus_map="none"), queries, documents)
    if "int8" in rows:
        ranges = fit_ranges(documents)
        codes = quantize_embeddings(documents, "int8", ranges)
        restored = unit_length(dequantize_embeddings(codes, "int8", ranges))
        yield _mapped("int8", contender.config, queries, restored, itemsize=1)
    for n in dims if "dims" in rows else ():
        if n < dimension:
            first = unit_length(queries[:, :n]), unit_length(documents[:, :n])
            yield _mapped(f"dim-{n}", contender.config, *first)


def _mapped(
    name: str, config: EmbedderConfig, queries: Vectors, documents: Vectors, itemsize: int = 4
) -> Variant:
    fitted = CorpusMap.fit(config.corpus_map, documents, config.map_components)
    bytes_each = itemsize * documents.shape[1]
    return Variant(name, fitted.apply(queries), fitted.apply(documents), bytes_each)
