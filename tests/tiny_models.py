"""Tiny random model folders that both our code and sentence-transformers can open."""

import json
import warnings
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from gpt_core.model.config import GPTConfig
from gpt_core.model.gpt import GPT

TEXTS = [
    "To know what you know, and to know what you do not: that is knowledge.",
    "retrieval",
    "知之为知之，不知为不知，是知也。",
    "A laptop without a network answers from its own documents, with citations.\n" * 3,
    "x = [1, 2, 3]",
]
GRAPHS = {
    "qwen3": GPTConfig(
        vocab_size=320, block_size=512, n_layer=3, n_head=4, n_kv_head=2, n_embd=32, head_dim=8, n_inner=48
    ),
    "gpt2": GPTConfig.gpt2(vocab_size=320, block_size=512, n_layer=3, n_head=4, n_embd=32),
}


def save_model(folder: Path, graph: str, eos_after_text: bool = False) -> Path:
    """Save a tiny random model with a byte-level BPE tokenizer in a folder that transformers can load, too."""
    torch.manual_seed(0)
    GPT(GRAPHS[graph]).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<eos>"],
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if eos_after_text:
        tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def reference_model(folder: Path, mode: str, max_seq_length: int | None = None) -> SentenceTransformer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer = Transformer(str(folder), max_seq_length=max_seq_length)
        modules = [transformer, Pooling(32, mode), Normalize()]
        prompts = {"query": "search for: ", "document": "text: "}
        return SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
