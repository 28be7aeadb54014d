"""An embedder's settings: pooling, prompts, maximum length, corpus map, score fusion.

They are stored beside the weights in `embedder.json` or in sentence-transformers' files, or, for known published
models, in `embed/known/`.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from gpt_core.common.errors import InputError
from gpt_core.common.json_files import parse_json

# The first three are sentence-transformers' modes, under its names.
PoolingMode = Literal["weightedmean", "mean", "lasttoken", "sublinear"]
MapKind = Literal["none", "standardise", "whiten", "half-whiten"]
FusionKind = Literal["tm2c2", "z", "rrf"]


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise InputError unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"embedder setting {name} is {value!r}; expected one of {', '.join(choices)}.")


def _check_whole(name: str, value: Any, least: int, optional: bool = True) -> None:
    if value is None and optional:
        return
    if type(value) is not int or value < least:
        raise InputError(
            f"embedder setting {name} is {value!r}; expected a whole number of at least {least}."
        )


def check_type(name: str, value: Any, kind: type, words: str) -> None:
    """Raise InputError unless `value` is a `kind`; the message describes `kind` as `words`."""
    if not isinstance(value, kind):
        raise InputError(f"embedder setting {name} is {value!r}; expected {words}.")


@dataclass(frozen=True)
class Pooling:
    """Which hidden states are pooled, and how.

    Attributes:
        mode: "weightedmean" (SGPT: weight i for the i-th token), "mean", "lasttoken", or "sublinear" (sublinear term
            frequency: the n occurrences of a token in a text together have the weight √n instead of n).
        layer: pool the hidden states after this many blocks (0: the token embeddings); None: the model's last hidden
            states, after the final norm.
        skip_first: exclude a text's first token, unless it is the only one. In a GPT that was not tuned as an embedder
            the first token is an attention sink whose large state dominates the mean.
        unit_tokens: normalise each token's state to unit length before pooling.
        final_norm: apply the model's final norm to the states of `layer`, as if the later blocks did not exist.
    """

    mode: PoolingMode = "weightedmean"
    layer: int | None = None
    skip_first: bool = False
    unit_tokens: bool = False
    final_norm: bool = False

    def __post_init__(self) -> None:
        check_choice("pooling.mode", self.mode, get_args(PoolingMode))
        _check_whole("pooling.layer", self.layer, 0)
        check_type("pooling.final_norm", self.final_norm, bool, "true or false")
        check_type("pooling.skip_first", self.skip_first, bool, "true or false")
        check_type("pooling.unit_tokens", self.unit_tokens, bool, "true or false")


# Of an embedder without blocks: the mean of token vectors, in which a repeated token may count less.
TABLE = Pooling("mean", layer=0)
TABLE_POOLINGS = {"mean": TABLE, "sublinear": Pooling("sublinear", layer=0)}


@dataclass(frozen=True)
class Fusion:
    """How a hybrid search combines the dense and the lexical scores; an index copies it from its embedder.

    Attributes:
        kind: "tm2c2" (theoretical minimum and maximum, Bruch et al. 2022), "z" (standard scores over the
            corpus), or "rrf" (reciprocal rank fusion, Cormack et al. 2009).
        dense_weight: weight of the dense retriever, 0 to 1; the lexical retriever has 1 - dense_weight. Unused by
            "rrf".
        k: the constant of "rrf"; unused by the others.
    """

    kind: FusionKind = "tm2c2"
    dense_weight: float = 0.8
    k: int = 60

    def __post_init__(self) -> None:
        check_choice("fusion.kind", self.kind, get_args(FusionKind))
        if type(self.dense_weight) not in (int, float) or not 0 <= self.dense_weight <= 1:
            raise InputError(
                f"embedder setting fusion.dense_weight is {self.dense_weight!r}; expected 0 to 1."
            )
        _check_whole("fusion.k", self.k, 1, optional=False)


@dataclass(frozen=True)
class EmbedderConfig:
    """All settings of an embedder.

    Attributes:
        pooling: how token states become one vector.
        query_prompt: prepended to a query and tokenised with it, as in sentence-transformers.
        document_prompt: prepended to a document and tokenised with it.
        max_tokens: longest input in tokens, prompt and special tokens included; None: the model's context length.
        corpus_map: the kind of `CorpusMap` that an index fits on its corpus; "none" for a tuned embedder.
        map_components: number of dimensions after whitening; None: all.
        fusion: how a hybrid search combines this embedder with the lexical retriever.
    """

    pooling: Pooling = field(default_factory=Pooling)
    query_prompt: str = ""
    document_prompt: str = ""
    max_tokens: int | None = None
    corpus_map: MapKind = "none"
    map_components: int | None = None
    fusion: Fusion = field(default_factory=Fusion)

    def __post_init__(self) -> None:
        check_type("pooling", self.pooling, Pooling, "an object of pooling settings")
        check_type("query_prompt", self.query_prompt, str, "a string")
        check_type("document_prompt", self.document_prompt, str, "a string")
        _check_whole("max_tokens", self.max_tokens, 1)
        check_choice("corpus_map", self.corpus_map, get_args(MapKind))
        _check_whole("map_components", self.map_components, 1)
        check_type("fusion", self.fusion, Fusion, "an object of fusion settings")

    @classmethod
    def from_json(cls, text: str, source: str = "embedder.json") -> "EmbedderConfig":
        """Parse the output of `to_json`.

        Raises:
            InputError: for invalid JSON, an unknown setting or a bad value; the message begins with `source`.
        """
        values = parse_json(text, source, dict)
        try:
            for key, kind in (("pooling", Pooling), ("fusion", Fusion)):
                if isinstance(values.get(key), dict):
                    values[key] = _from_dict(kind, values[key])
            return _from_dict(cls, values)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def to_json(self) -> str:
        """The settings as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def _from_dict(kind: type, values: dict[str, Any]) -> Any:
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            raise InputError(f"unknown embedder setting {key!r}; the settings are {', '.join(known)}.")
    return kind(**values)
