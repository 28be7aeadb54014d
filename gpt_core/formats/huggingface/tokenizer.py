"""Read the tokenizer of a model folder from any of the supported files."""

from pathlib import Path
from typing import Any, NamedTuple

import tiktoken
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from gpt_core.common.errors import InputError
from gpt_core.common.json_files import read_json
from gpt_core.formats.gguf.tokenizer import read_gguf_tokenizer
from gpt_core.formats.nanogpt import checkpoint_in, read_checkpoint_tokenizer
from gpt_core.hub.locate import gguf_in
from gpt_core.tokenizer.builtin import GPT2_EOS

GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
SPECIAL_TOKEN_KEYS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class TokenizerParts(NamedTuple):
    """The tokenizer of a folder.

    Attributes:
        backend: a tokenizer of `tokenizers` or `tiktoken`.
        ids: ids of "bos", "eos" and "pad"; None where there is none.
        chat_template: Jinja source, or None.
    """

    backend: RustTokenizer | tiktoken.Encoding
    ids: dict[str, int | None]
    chat_template: str | None


def read_tokenizer(folder: Path) -> TokenizerParts:
    """Read `tokenizer.json`, a GGUF file, nanoGPT's or small-gpt's vocabulary, or `vocab.json` with `merges.txt`.

    Raises:
        InputError: if there are none of these files, one cannot be read, or the tokenizer has neither the named
            eos_token nor any of the eos ids of config.json.
    """
    if (folder / "tokenizer.json").exists():
        return _read_hf(folder, _settings(folder), _read_backend(folder / "tokenizer.json"))
    if gguf := gguf_in(folder):
        return TokenizerParts(*read_gguf_tokenizer(gguf))
    if checkpoint := checkpoint_in(folder):
        return TokenizerParts(*read_checkpoint_tokenizer(checkpoint))
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        settings = dict.fromkeys(SPECIAL_TOKEN_KEYS[:3], GPT2_EOS) | _settings(folder)
        return _read_hf(folder, settings, _read_merges(folder, settings))
    if (folder / "task.json").exists() and not (folder / "config.json").exists():
        raise InputError(
            f"{folder} holds only what LoRA changed of a model, for a task; it predicts with finetune.py --predict."
        )
    raise InputError(
        f"{folder} has no tokenizer: no tokenizer.json, no vocab.json with merges.txt and no .gguf file; put the "
        "model's tokenizer.json there."
    )


def _read_hf(folder: Path, settings: dict[str, Any], backend: RustTokenizer) -> TokenizerParts:
    config = read_json(folder / "config.json")
    ids: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad"):
        token = _text(settings.get(f"{name}_token"))
        ids[name] = backend.token_to_id(token) if token else None
        # In GPT-2's own folder no file names the special tokens; only config.json has their ids.
        if ids[name] is None and (token or f"{name}_token" not in settings):
            ids[name] = _first_token(config.get(f"{name}_token_id"), backend)
        # bos and pad are optional; without an eos, generation would not end.
        if name == "eos" and token and ids["eos"] is None:
            raise InputError(
                f"{folder} names {token!r} as its eos_token, which its tokenizer does not have; set eos_token in "
                "tokenizer_config.json or special_tokens_map.json to one of its tokens, or to null."
            )
    template = default_template(settings.get("chat_template"))
    if (folder / "chat_template.jinja").exists():
        try:
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{folder / 'chat_template.jinja'} is not UTF-8 at byte {error.start}; copy or fetch it again."
            ) from error
    return TokenizerParts(backend, ids, template)


def _first_token(ids: Any, backend: RustTokenizer) -> int | None:
    """The first id of a config's id or list of ids that the tokenizer has."""
    known = (i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int and 0 <= i < 2**32)
    return next((i for i in known if backend.id_to_token(i) is not None), None)


def _read_backend(path: Path) -> RustTokenizer:
    try:
        backend = RustTokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # `tokenizers` raises bare Exception for a damaged file
        raise InputError(f"{path} is not a tokenizer that can be read: {error}.") from error
    if not backend.get_vocab():
        raise InputError(f"{path} is not a tokenizer that can be read: it has no tokens.")
    return backend


def _read_merges(folder: Path, settings: dict[str, Any]) -> RustTokenizer:
    """A byte-level BPE as GPT-2's from `vocab.json` and `merges.txt`, as in transformers."""
    kind = settings.get("tokenizer_class", GPT2_CLASSES[0])
    if kind not in GPT2_CLASSES:
        raise InputError(
            f"{folder} has vocab.json and merges.txt of a {kind}, which may split text in other ways than "
            "GPT2Tokenizer; put the model's tokenizer.json there."
        )
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise InputError(f"{folder} has a vocab.json or merges.txt that cannot be read: {error}") from error
    backend = RustTokenizer(model)
    space = settings.get("add_prefix_space", False) is True
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    special = {name: text for name in SPECIAL_TOKEN_KEYS if (text := _text(settings.get(name))) is not None}
    _add_tokens(backend, folder, settings, set(special.values()))
    bos, eos = (
        special.get(name) if settings.get(f"add_{name}") is True else None for name in SPECIAL_TOKEN_KEYS[:2]
    )
    if bos or eos:
        ends = [token for token in (bos, eos) if token]
        backend.post_processor = processors.TemplateProcessing(
            single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
            special_tokens=[(token, backend.token_to_id(token)) for token in ends],
        )
    return backend


def _add_tokens(backend: RustTokenizer, folder: Path, settings: dict[str, Any], special: set[str]) -> None:
    """Add tokens beyond the merges: first those with ids in the files, then the other special tokens."""
    added: dict[int, AddedToken] = {}
    path = folder / "added_tokens.json"
    if isinstance(table := settings.get("added_tokens_decoder"), dict):
        path = folder / "tokenizer_config.json"
        for i, token in table.items():
            if isinstance(token, dict) and (text := _text(token)) is not None and i.isdecimal():
                flags = {
                    k: v is True
                    for k, v in token.items()
                    if k in ("lstrip", "rstrip", "single_word", "normalized")
                }
                added[int(i)] = AddedToken(text, special=token.get("special") is True, **flags)
    elif path.exists():
        for text, i in read_json(path, optional=False).items():
            if type(i) is not int:
                raise InputError(f"{path} gives {text!r} the id {i!r}; expected a whole number.")
            added[i] = AddedToken(text, special=text in special, normalized=text not in special)
    for i, token in sorted(added.items()):
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != i:
            raise InputError(
                f"{path} gives {token.content!r} the id {i}, which leaves a gap or belongs to another token; "
                "use the next free id."
            )
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in sorted(special)])


def _settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, with the special tokens that older folders have in `special_tokens_map.json`."""
    settings: dict[str, Any] = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings |= read_json(folder / "special_tokens_map.json")
    return settings


def _text(token: Any) -> str | None:
    """A token's text; in the files it is a string or an object with flags."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def default_template(templates: Any) -> str | None:
    """The template of `chat_template` in `tokenizer_config.json`: the only one, or the one named "default"."""
    if isinstance(templates, list):
        named = {t.get("name"): t.get("template") for t in templates if isinstance(t, dict)}
        templates = named.get("default")
    return templates if isinstance(templates, str) else None
