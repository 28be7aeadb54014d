"""One tokenizer class over two libraries: tiktoken for GPT-2's BPE, `tokenizers` for everything else."""

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as RustTokenizer

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.hub.locate import resolve
from gpt_core.tokenizer.builtin import BYTE_OF, character_backend, gpt2_rust, gpt2_tiktoken
from gpt_core.tokenizer.chat_text import ChatText, check_unicode

# Tokenizers with the same vocabulary but different pre-tokenization give different ids for this text.
PROBE = "It's 2026, we'll see:\n\n  x_1 += 3.14159  # naïve café — 知之为知之 🙂🏽\t\r\n"

Offsets = list[tuple[int, int]]


class Tokenizer:
    """Text to token ids and back. Make one with `from_pretrained` or `from_characters`.

    A special token that is spelled out in a text is encoded as plain text: special tokens come only from `chat`
    templates and `add_special_tokens`, never from users' messages or documents.

    Attributes:
        vocab_size: number of ids.
        bos_id, eos_id, pad_id: ids of special tokens, or None.
        chat_template: Jinja source, or None.
    """

    def __init__(
        self,
        backend: RustTokenizer | tiktoken.Encoding,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        chat_template: str | None = None,
    ) -> None:
        self._backend = backend
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self.chat_template = chat_template
        if isinstance(backend, tiktoken.Encoding):
            self.vocab_size = backend.n_vocab
        else:
            backend.no_truncation()
            backend.no_padding()
            # True means that special tokens are encoded as plain text, in spite of the name
            backend.encode_special_tokens = True
            self.vocab_size = max(backend.get_vocab().values()) + 1

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> "Tokenizer":
        """Load "gpt2" (part of the package), or the tokenizer of a model folder or known model.

        A folder comes first, also one that is called gpt2; a `Path` is always a folder.

        Raises:
            InputError: if the folder has no tokenizer in a supported format.
        """
        if name_or_folder == "gpt2" and not Path("gpt2").is_dir():
            gpt2 = gpt2_tiktoken()
            return cls(gpt2, bos_id=gpt2.eot_token, eos_id=gpt2.eot_token)
        from gpt_core.formats.huggingface.tokenizer import (
            read_tokenizer,  # imported here, because it imports this module
        )

        backend, ids, template = read_tokenizer(resolve(name_or_folder))
        return cls(backend, bos_id=ids["bos"], eos_id=ids["eos"], pad_id=ids["pad"], chat_template=template)

    @classmethod
    def from_characters(cls, text: str) -> "Tokenizer":
        """A tokenizer of the distinct characters of `text`, in code point order, as nanoGPT's shakespeare_char.

        Raises:
            InputError: for an empty text.
        """
        if not text:
            raise InputError("A character vocabulary needs a text with at least one character.")
        vocab = {character: i for i, character in enumerate(sorted(set(text)))}
        return cls(character_backend(vocab))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; `add_special_tokens` adds the model's bos and eos.

        Raises:
            InputError: for a character that is not in a character vocabulary, or text that is not valid Unicode.
        """
        check_unicode(text)
        if isinstance(self._backend, tiktoken.Encoding):
            return self._backend.encode_ordinary(text)
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_trusted(self, text: str) -> list[int]:
        """`encode` with `add_special_tokens`, in which special tokens that are spelled out become special tokens.

        Only for prompts that the user of a command wrote, never for untrusted text.

        Raises:
            InputError: as `encode`.
        """
        check_unicode(text)
        try:
            return self.encode_template(text, add_special_tokens=True)
        except Exception as error:  # `tokenizers` raises bare Exception for a token out of vocabulary
            raise self._unknown_character([text], error) from error

    def encode_batch(self, texts: list[str], add_special_tokens: bool = False) -> list[list[int]]:
        """`encode` of each text, on all CPU cores."""
        for text in texts:
            check_unicode(text)
        if isinstance(self._backend, tiktoken.Encoding):
            return self._backend.encode_ordinary_batch(texts)
        try:
            return [e.ids for e in self._backend.encode_batch(texts, add_special_tokens=add_special_tokens)]
        except Exception as error:  # `tokenizers` raises bare Exception for a token out of vocabulary
            raise self._unknown_character(texts, error) from error

    def encode_to_numpy(self, texts: list[str]) -> list[NDArray[np.uint32]]:
        """`encode` of each text as an array, for large corpora: avoids a Python object per id where possible.

        The GIL is released while a text is encoded, so calls can run in several threads. One call uses one thread; with
        `tokenizers`, all threads of its pool.

        Returns:
            (n_tokens,) uint32 for each text.
        """
        if self._characters is not None:
            return [self._look_up(text, self._characters) for text in texts]
        for text in texts:
            check_unicode(text)
        if isinstance(self._backend, tiktoken.Encoding):
            return [self._backend.encode_to_numpy(text, disallowed_special=()) for text in texts]
        try:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # `tokenizers` raises bare Exception for a token out of vocabulary
            raise self._unknown_character(texts, error) from error
        return [np.array(e.ids, dtype=np.uint32) for e in encodings]

    def _look_up(self, text: str, characters: NDArray[np.int32]) -> NDArray[np.uint32]:
        check_unicode(text)
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        ids = characters[np.minimum(points, len(characters) - 1)]
        if len(ids) and ids.min() < 0:
            raise self._unknown_character([text], KeyError())
        return ids.astype(np.uint32)

    @cached_property
    def _characters(self) -> NDArray[np.int32] | None:
        """(n,) int32: id of each code point, or -1; None if this tokenizer is not from `from_characters`."""
        if not isinstance(self._backend, RustTokenizer) or not isinstance(
            self._backend.model, models.WordLevel
        ):
            return None
        vocab = self._backend.get_vocab()
        if any(len(token) != 1 for token in vocab):
            return None
        made = Tokenizer.from_characters("".join(vocab))._backend
        if not isinstance(made, RustTokenizer) or made.to_str() != self._backend.to_str():
            return None
        # the last entry is for all higher code points
        table = np.full(max(map(ord, vocab)) + 2, -1, dtype=np.int32)
        for character, i in vocab.items():
            table[ord(character)] = i
        return table

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Token ids, and for each the half-open range of code points of `text` that it covers, also in part."""
        if not isinstance(self._backend, tiktoken.Encoding):
            check_unicode(text)
            try:
                encoding = self._backend.encode(text, add_special_tokens=False)
            except Exception as error:  # `tokenizers` raises bare Exception for a token out of vocabulary
                raise self._unknown_character([text], error) from error
            return encoding.ids, encoding.offsets
        ids = self.encode(text)
        # index of the code point of each byte of the text
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        place = np.cumsum((data & 0xC0) != 0x80) - 1
        ends = np.cumsum([len(self._backend.decode_single_token_bytes(i)) for i in ids], dtype=np.int64)
        starts = np.concatenate(([0], ends[:-1])) if len(ids) else ends
        return ids, list(zip(place[starts].tolist(), (place[ends - 1] + 1).tolist(), strict=True))

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, including special tokens; an incomplete character becomes U+FFFD.

        Raises:
            InputError: for an id below 0 or from `vocab_size` on. An id between them without a token decodes to "".
        """
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise InputError(f"There is no token {i}; expected ids from 0 to {self.vocab_size - 1}.")
        if isinstance(self._backend, tiktoken.Encoding):
            return self._backend.decode(ids)
        return self._backend.decode(ids, skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text, possibly part of a character; of a special token, its name.

        Raises:
            InputError: as `decode`.
        """
        text = self.decode([token])
        if isinstance(self._backend, tiktoken.Encoding):
            return self._backend.decode_single_token_bytes(token)
        if token in self._added:
            return self._added[token].content.encode()
        if "\ufffd" not in text:
            # decoded after another token: SentencePiece's decoders drop the space at the start of a text
            return self.decode([token, token])[len(text) :].encode()
        written = self._backend.id_to_token(token) or ""
        if match := re.fullmatch("<0x([0-9A-F]{2})>", written):
            return bytes.fromhex(match[1])
        if all(character in BYTE_OF for character in written):
            return bytes(BYTE_OF[character] for character in written)
        return text.encode()

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's chat template, up to the start of the assistant's reply.

        The template is untrusted: it runs in a sandbox with limits (`chat_template.render`). Special tokens come only
        from the template; one that is spelled out in a message is encoded as text.

        Args:
            messages: `{"role": "system" | "user" | "assistant", "content": …}`, oldest first.

        Raises:
            InputError: if there is no template, or it fails, rejects the messages or violates the sandbox.
        """
        conversation = ChatText(self, messages)
        return conversation.encode(conversation.render(len(messages), reply=True))

    def chat_replies(
        self, messages: list[dict[str, str]], limit: int | None = None
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation up to its last reply, and which of them a model must learn to write.

        The assistant's replies are encoded as a model generates them, apart from the prompt before; what must be
        learned is each reply with the special token that ends it.

        Args:
            messages: as for `chat`, with at least one reply of the assistant.
            limit: leave out the replies after this many tokens, since each takes the time of all turns before it.

        Raises:
            InputError: as `chat`; also for a template that writes the turns before a reply in another way than after.
        """
        special = set(self.eos_ids) | {i for i, token in self._added.items() if token.special}
        return ChatText(self, messages).replies(special, limit)

    def encode_template(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """`encode` of a template's own text, in which special tokens that are spelled out become special tokens."""
        if isinstance(self._backend, tiktoken.Encoding):
            return self._backend.encode(text, allowed_special="all")
        return self._template_backend.encode(text, add_special_tokens=add_special_tokens).ids

    @cached_property
    def _template_backend(self) -> RustTokenizer:
        """A copy that recognises special tokens; changing the setting of the original is not thread-safe."""
        assert isinstance(self._backend, RustTokenizer)
        return RustTokenizer.from_str(self._backend.to_str())

    @cached_property
    def special_tokens(self) -> list[str]:
        """The special tokens as text, longest first."""
        if isinstance(self._backend, tiktoken.Encoding):
            return sorted(self._backend.special_tokens_set)
        # longest first, so that a token that contains another one is matched completely
        special = (t.content for t in self._added.values() if t.special)
        return sorted(special, key=len, reverse=True)

    @cached_property
    def _added(self) -> dict[int, AddedToken]:
        return self.rust.get_added_tokens_decoder()

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The id that ends a text, or no id."""
        return () if self.eos_id is None else (self.eos_id,)

    @property
    def rust(self) -> RustTokenizer:
        """This tokenizer in the library `tokenizers`, whose file format transformers reads."""
        return gpt2_rust() if isinstance(self._backend, tiktoken.Encoding) else self._backend

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the vocabulary and of the ids of `PROBE`, in hex; independent of the file format."""
        vocab = self.rust.get_vocab()
        try:
            probe = self.encode(PROBE)
        except InputError:  # a character vocabulary is identified by its characters
            probe = []
        content = json.dumps([sorted(vocab.items(), key=lambda item: item[1]), probe])
        return hashlib.sha256(content.encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` in transformers' format."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        for name, i in (("bos", self.bos_id), ("eos", self.eos_id), ("pad", self.pad_id)):
            if i is not None:
                settings[f"{name}_token"] = self.decode([i])
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        atomic_write(folder / "tokenizer.json", self.rust.to_str(pretty=True))
        atomic_write(
            folder / "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        )

    def _unknown_character(self, texts: list[str], error: Exception) -> InputError:
        vocab = self._backend.get_vocab() if isinstance(self._backend, RustTokenizer) else {}
        for character in dict.fromkeys("".join(texts)):
            if character not in vocab:
                return InputError(
                    f"The character {character!r} (U+{ord(character):04X}) is not in this vocabulary of "
                    f"{self.vocab_size}; leave it out, or use a byte-level tokenizer such as gpt2."
                )
        return InputError(f"The tokenizer cannot encode this text: {error}")
