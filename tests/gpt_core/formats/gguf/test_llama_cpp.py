"""llama.cpp loads the exported GGUF files and generates the same tokens from a prompt.

llama-cpp-python is not a dependency. It needs a separate environment; without one these tests are skipped:

    python -m venv llama && llama/bin/pip install llama-cpp-python
    LLAMA_CPP_PYTHON=llama/bin/python .venv/bin/python -m pytest tests/gpt_core/formats/gguf/test_llama_cpp.py

llama.cpp rounds more: keys and values to 16 bits and, with Q8_0, the inputs of matrix products to 8 bits. So its greedy
text may differ where the two best logits are close. Each test prints how often the best tokens agree.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from gpt_core import GPT, Engine, GPTConfig, SamplingParams, Tokenizer
from gpt_core.data.train_tokenizer import train_tokenizer
from gpt_core.formats.export import export_gguf
from gpt_core.hub.locate import gguf_in
from gpt_core.model.rope_scaling import RopeScaling
from tests.tiny_models import TEXTS

PYTHON = os.environ.get("LLAMA_CPP_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="LLAMA_CPP_PYTHON names no python that has llama_cpp")

DRIVER = """
import json, sys
from llama_cpp import Llama
job = json.load(sys.stdin)
model = Llama(job["file"], n_ctx=256, n_threads=1, logits_all=True, verbose=False)
answers = []
for ids, text, ours in job["prompts"]:
    cut = model.tokenize(text.encode(), add_bos=True, special=False)
    model.reset()
    greedy = [token for token, _ in zip(model.generate(ids, temp=0.0, repeat_penalty=1.0), ours)]
    model.reset()
    model.eval(ids + ours)
    logits = model.scores[: len(ids + ours)].astype(float).tolist()
    written = model.detokenize(greedy, special=True).decode(errors="replace")
    answers.append({"cut": cut, "ids": greedy, "text": written, "logits": logits})
metadata = {key: value for key, value in model.metadata.items() if not key.startswith("tokenizer.ggml.tok")}
json.dump({"answers": answers, "metadata": metadata}, sys.stdout)
"""
PROMPTS = [
    "To know what you know",
    "It's 2026, we'll see: 12345678\\n\\n\\tDON'T  don’t 知之为知之 🙂🏽 e\u0301\r\n",
    TEXTS[3],
]
SHAPE = {"block_size": 256, "n_layer": 3, "n_head": 4, "n_embd": 64}
ROTARY = SHAPE | {"n_kv_head": 2, "head_dim": 16, "n_inner": 96}
YARN = RopeScaling("yarn", 4.0, 32, attention_factor=1.138629436111989)
CONFIGS = {
    "gpt2": lambda vocab: GPTConfig.gpt2(**SHAPE, vocab_size=vocab),
    "gpt2-gelu-untied": lambda vocab: GPTConfig.gpt2(
        **SHAPE, vocab_size=vocab, mlp="gelu_erf", tie_embeddings=False
    ),
    "llama": lambda vocab: GPTConfig(**ROTARY, vocab_size=vocab, qk_norm=False),
    "llama-bias-untied": lambda vocab: GPTConfig(
        **ROTARY, vocab_size=vocab, qk_norm=False, attn_bias=True, mlp_bias=True, tie_embeddings=False
    ),
    "llama-3.1": lambda vocab: GPTConfig(
        **ROTARY, vocab_size=vocab, qk_norm=False, rope_scaling=RopeScaling("llama3", 8.0, 32)
    ),
    "qwen3": lambda vocab: GPTConfig(**ROTARY, vocab_size=vocab),
    "qwen3-wide-heads": lambda vocab: GPTConfig(
        **ROTARY | {"head_dim": 32}, vocab_size=vocab, rope_theta=1e6
    ),
    "qwen3-linear": lambda vocab: GPTConfig(
        **ROTARY, vocab_size=vocab, rope_scaling=RopeScaling("linear", 4.0)
    ),
    "qwen3-yarn": lambda vocab: GPTConfig(**ROTARY, vocab_size=vocab, rope_scaling=YARN),
}


class Comparison(NamedTuple):
    """Result of a comparison.

    Attributes:
        difference: largest absolute difference of two logits.
        n: number of texts.
        n_same: number of texts that are identical.
        agreement: share of positions with the same best token, given our text so far.
    """

    difference: float
    n: int
    n_same: int
    agreement: float

    def __str__(self) -> str:
        return (
            f"logits within {self.difference:.2g}, best token {self.agreement:.1%} the same, "
            f"{self.n_same} of {self.n} texts the same"
        )


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    """GPT-2's BPE, and one trained here."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("\n".join(TEXTS))
    train_tokenizer(input=[str(folder / "text.txt")], vocab_size=400, out=str(folder / "own"))
    return {"gpt2": Tokenizer.from_pretrained("gpt2"), "own": Tokenizer.from_pretrained(folder / "own")}


def random_model(config: GPTConfig, n_tokens: int) -> GPT:
    """Random weights, large enough for a clear best token; zeros in the rows of ids without a token."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.05)
            else:
                p.normal_(std=0.5 if name.startswith(("wte", "wpe")) else 1.5 / p.shape[1] ** 0.5)
        for matrix in (model.wte, model.head):
            if matrix is not None:
                matrix.weight[n_tokens:] = 0
    return model


def compare(folder: Path, prompts: list[list[int]], texts: list[str], n: int = 40) -> Comparison:
    """Compare llama.cpp with ours on the GGUF file in `folder`: the ids of `texts`, logits, greedy text."""
    model, tokenizer = GPT.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    engine = Engine(model, tokenizer, max_running=len(prompts), context=256)
    wanted = SamplingParams(max_new_tokens=n, temperature=0)
    requests = [engine.submit(ids, wanted) for ids in prompts]
    engine.run()
    ours = [request.token_ids for request in requests]
    job = {"file": str(gguf_in(folder)), "prompts": list(zip(prompts, texts, ours, strict=True))}
    assert PYTHON is not None
    done = subprocess.run([PYTHON, "-c", DRIVER], input=json.dumps(job), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["metadata"]["general.architecture"] == model.config.model_type
    difference, n_same, agreed = 0.0, 0, []
    for ids, text, written, theirs in zip(prompts, texts, ours, said["answers"], strict=True):
        assert theirs["cut"] == tokenizer.encode(text)
        with torch.no_grad():
            logits = model(torch.tensor([ids + written])).logits[0]
        their_logits = torch.tensor(theirs["logits"])
        difference = max(difference, (logits - their_logits).abs().max().item())
        same = their_logits[len(ids) - 1 : -1].argmax(dim=-1) == torch.tensor(written)
        agreed += same.tolist()
        if theirs["ids"] == written:
            n_same += 1
            assert theirs["text"].rstrip("\ufffd") == tokenizer.decode(written).rstrip("\ufffd")
    return Comparison(difference, len(prompts), n_same, sum(agreed) / len(agreed))


@pytest.mark.parametrize("dtype", ["float16", "q8_0"])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_text_equals_ours(name, dtype, tokenizers, tmp_path, capsys):
    tokenizer = tokenizers["gpt2" if name.startswith("gpt2") else "own"]
    vocab_size = -(-tokenizer.vocab_size // 64) * 64  # padded, as in training
    random_model(CONFIGS[name](vocab_size), tokenizer.vocab_size).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    file = export_gguf(tmp_path / "model", tmp_path / "out", dtype)
    result = compare(file.parent, [tokenizer.encode(text) for text in PROMPTS], PROMPTS)
    with capsys.disabled():
        print(f"\n{name} {dtype}: {result}")
    # the logits have a spread of about 4
    assert result.difference < (0.1 if dtype == "float16" else 2.0)
    assert result.agreement >= (0.98 if dtype == "float16" else 0.8)
    assert result.n_same >= (2 if dtype == "float16" else 0)


@pytest.mark.network
@pytest.mark.parametrize("dtype", ["float16", "q8_0"])
def test_smollm2_generates_the_same_text(dtype, smollm2, tmp_path, capsys):
    file = export_gguf(smollm2, tmp_path / "out", dtype)
    tokenizer = Tokenizer.from_pretrained(smollm2)
    texts = ["The capital of France is", "Water boils at 100 degrees Celsius, because", "def fibonacci(n):\n"]
    prompts = [tokenizer.encode(text) for text in texts]
    for question in ("Why is the sky blue?", "Name three rivers in Europe.", "What is 2 + 2?"):
        prompts.append(tokenizer.chat([{"role": "user", "content": question}]))
        texts.append(question)
    result = compare(file.parent, prompts, texts)
    with capsys.disabled():
        print(f"\nSmolLM2 {dtype}: {result}")
    assert result.agreement >= (1.0 if dtype == "float16" else 0.9)
