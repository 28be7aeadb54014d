"""Exported models give the same logits and token ids in transformers and in our GGUF reader."""

import json
import math
import os
import resource
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from gpt_core import GPT, GPTConfig, InputError, Tokenizer
from gpt_core.formats.card import Card
from gpt_core.formats.export import export_gguf, export_hf
from gpt_core.formats.gguf.rope import read_scaling
from gpt_core.formats.gguf.tokenizer import SCHEMES, pre_tokenizer
from gpt_core.model.rope_scaling import RopeScaling
from tests.tiny_models import save_model

SHAPE = {"vocab_size": 384, "block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 32, "eos_id": 1}
ROTARY = SHAPE | {"n_kv_head": 2, "head_dim": 16, "n_inner": 64}
YARN = RopeScaling("yarn", 4.0, 16, attention_factor=0.1 * math.log(4.0) + 1)
CONFIGS = {
    "gpt2": GPTConfig.gpt2(**SHAPE),
    "gpt2-untied": GPTConfig.gpt2(**SHAPE, tie_embeddings=False, n_inner=48),
    "llama": GPTConfig(**ROTARY, qk_norm=False, rope_theta=5e4, tie_embeddings=False),
    "llama-bias": GPTConfig(**ROTARY, qk_norm=False, attn_bias=True, mlp_bias=True),
    "llama3-scaling": GPTConfig(
        **ROTARY, qk_norm=False, rope_scaling=RopeScaling("llama3", 8.0, 16, low_freq_factor=1.0)
    ),
    "linear-scaling": GPTConfig(**ROTARY, rope_scaling=RopeScaling("linear", 3.0)),
    "yarn": GPTConfig(**ROTARY, rope_scaling=YARN),
    "qwen3": GPTConfig(**ROTARY),
}
ONLY_HF = {
    "gpt2-exact-gelu": GPTConfig.gpt2(**SHAPE, mlp="gelu_erf"),
    "gpt-neo": GPTConfig.gpt2(
        **SHAPE, attn_bias="output", scale_attention=False, window=8, window_layers=(1,)
    ),
    "qwen3-bias": GPTConfig(**ROTARY, attn_bias=True),
    "qwen3-llama3": GPTConfig(**ROTARY, rope_scaling=RopeScaling("llama3", 8.0, 16)),
    "loud-yarn": GPTConfig(**ROTARY, rope_scaling=replace(YARN, attention_factor=2.0)),
}
NASTY = [
    "It's 2026, we'll see: 12345678 DON'T don’t 3.14159",
    "知之为知之，不知为不知，是知也。naïve café — e\u0301 🙂🏽 \u3000 \ufffd",
    "\n\n  x_1 += 1\t\r\n\r\n <eos> <|endoftext|> [PAD320]   \n",
]


def random_model(config: GPTConfig) -> GPT:
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
            if p.dim() == 2:
                p.copy_(p.half())  # exact in F16
    return model


def save_random(folder: Path, config: GPTConfig) -> Path:
    """Save a random model of 384 embedding rows with a tokenizer of 320 tokens."""
    save_model(folder, "qwen3")
    random_model(config).save_pretrained(folder)
    backend = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    backend.decoder = decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=CONFIGS | ONLY_HF)
def folder(request, tmp_path_factory) -> Path:
    """A random model, its tokenizer and a chat template."""
    folder = save_random(tmp_path_factory.mktemp(request.param), (CONFIGS | ONLY_HF)[request.param])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@torch.no_grad()
def test_transformers_opens_the_folder_with_the_same_logits_and_ids(folder, tmp_path):
    ours, tokenizer = GPT.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    export_hf(folder, tmp_path / "out")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.dtype == torch.float32
    ids = torch.randint(0, 384, (2, 64))
    assert (theirs.eval()(ids).logits - ours(ids).logits).abs().max() < 1e-4
    again = GPT.from_pretrained(tmp_path / "out")
    assert torch.equal(again(ids).logits, ours(ids).logits)
    settings = theirs.generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (None, 1, 0)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in NASTY:
        expected = tokenizer.encode(text)
        assert their_tokenizer(text, split_special_tokens=True)["input_ids"] == expected
        assert their_tokenizer.decode(expected) == tokenizer.decode(expected) == text
    assert their_tokenizer.model_max_length == 64
    messages = [{"role": "user", "content": NASTY[0]}]
    asked = their_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert asked == tokenizer.chat(messages)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_folders_open_in_that_precision(dtype, tmp_path):
    folder = save_model(tmp_path / "model", "qwen3")
    export_hf(folder, tmp_path / "out", dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == getattr(torch, dtype)
    ours = GPT.from_pretrained(folder)
    ids = torch.randint(0, 320, (1, 64))
    for p in ours.parameters():
        p.copy_(p.to(theirs.dtype))
    assert (theirs.float().eval()(ids).logits - ours(ids).logits).abs().max() < 1e-4
    big = GPT.from_pretrained(folder)
    big.blocks[0].mlp.up.weight[0, 0] = 1e6
    big.save_pretrained(folder)
    if dtype == "float16":
        with pytest.raises(InputError, match=r"blocks.0.mlp.up.weight has values beyond float16's range"):
            export_hf(folder, tmp_path / "other", dtype)
        with pytest.raises(InputError, match=r"blk.0.ffn_up.weight holds 1e\+06, beyond the range of F16"):
            export_gguf(folder, tmp_path / "other")
        assert not (tmp_path / "other").exists()


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_our_reader_reads_the_same_model_from_the_gguf_file(name, tmp_path, capsys):
    folder = save_random(tmp_path / "model", CONFIGS[name])
    ours, tokenizer = GPT.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    file = export_gguf(folder, tmp_path / "out")
    assert file == tmp_path / "out" / "out-F16.gguf"
    back, their_tokenizer = GPT.from_pretrained(file.parent), Tokenizer.from_pretrained(file.parent)
    ids = torch.randint(0, 384, (2, 64))
    assert (back(ids).logits - ours(ids).logits).abs().max() < 1e-5
    same = {"norm_eps": back.config.norm_eps, "bos_id": 1, "pad_id": 0}
    if name == "llama3-scaling":  # read back as one factor per rotary pair
        assert back.config.rope_scaling.kind == "longrope"
        same["rope_scaling"] = back.config.rope_scaling
    expected = replace(ours.config, **same)
    assert back.config == expected
    assert back.config.norm_eps == pytest.approx(ours.config.norm_eps)
    assert their_tokenizer.fingerprint == tokenizer.fingerprint
    assert (their_tokenizer.eos_id, their_tokenizer.pad_id) == (1, 0)
    for text in NASTY:
        assert their_tokenizer.encode(text) == tokenizer.encode(text)
        assert their_tokenizer.decode(tokenizer.encode(text)) == text

    fields = gguf.GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    assert tokens[320:] == [f"[PAD{i}]" for i in range(320, 384)]
    assert [types[i] for i in (0, 1, 2, 319, 320, 383)] == [3, 3, 1, 1, 5, 5]
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert capsys.readouterr().err == ""


@torch.no_grad()
def test_q8_0_leaves_matrices_float16_whose_rows_do_not_divide_into_blocks(tmp_path, capsys):
    folder = save_model(tmp_path / "model", "qwen3")  # its MLP is 48 wide
    file = export_gguf(folder, tmp_path / "out", "q8_0")
    assert "3 matrices stayed float16, first blk.0.ffn_down.weight" in capsys.readouterr().err
    formats = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert formats["token_embd.weight"] == formats["blk.0.attn_q.weight"] == "Q8_0"
    assert formats["blk.2.ffn_down.weight"] == "F16"
    assert formats["blk.1.attn_norm.weight"] == formats["blk.1.attn_q_norm.weight"] == "F32"
    ours, back = GPT.from_pretrained(folder), GPT.from_pretrained(file.parent)
    for (name, a), b in zip(ours.named_parameters(), back.parameters(), strict=True):
        assert (a - b).abs().max() <= a.abs().max() / 240, (
            name
        )  # half a step of 1/127 of the largest, scales rounded


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_pre_tokenizer_is_read_back_from_gguf(scheme, tmp_path):
    folder = save_random(tmp_path / "model", CONFIGS["qwen3"])
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["ignore_merges"] = scheme == "llama-bpe"
    content["normalizer"] = {"type": "NFC"} if scheme == "qwen2" else None
    backend = RustTokenizer.from_str(json.dumps(content))
    backend.pre_tokenizer = pre_tokenizer(scheme)
    backend.add_special_tokens(["<bos>"])
    backend.add_tokens(["[tool]"])
    for ends in ("$A", "<bos> $A", "$A <eos>", "<bos> $A <eos>"):
        special = [("<bos>", 320), ("<eos>", 1)]
        backend.post_processor = processors.TemplateProcessing(ends, special_tokens=special)
        tokenizer = Tokenizer(backend, bos_id=320, eos_id=1, chat_template="{{ messages[0].content }}")
        tokenizer.save(folder)
        back = Tokenizer.from_pretrained(export_gguf(folder, tmp_path / ends).parent)
        for text in [*NASTY, "a [tool] b", "<bos>"]:
            for special_tokens in (False, True):
                assert back.encode(text, special_tokens) == tokenizer.encode(text, special_tokens)
        assert (back.bos_id, back.eos_id, back.pad_id) == (320, 1, None)
        assert back.chat_template == tokenizer.chat_template
        assert back.vocab_size == 322


def test_a_second_end_token_and_the_licence_are_exported(tmp_path):
    folder = save_random(tmp_path / "model", replace(CONFIGS["qwen3"], eos_id=(7, 1)))
    card = Card({"license": "mit"})
    file = export_gguf(folder, tmp_path / "out", "float16", card)
    assert GPT.from_pretrained(file.parent).config.eos_ids == (1, 7)  # the tokenizer's end token comes first
    assert gguf.GGUFReader(file).fields["general.license"].contents() == "mit"
    export_hf(folder, tmp_path / "hf", "float32", card)
    settings = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert settings == {"eos_token_id": [7, 1], "pad_token_id": 0}


def test_gpt2s_tokenizer_is_read_back_from_gguf(tmp_path):
    tokenizer = Tokenizer.from_pretrained("gpt2")
    tokenizer.save(tmp_path / "model")
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 2, "block_size": 8}
    GPT(GPTConfig.gpt2(**shape, vocab_size=50304)).save_pretrained(tmp_path / "model")
    back = Tokenizer.from_pretrained(export_gguf(tmp_path / "model", tmp_path / "out").parent)
    assert [back.encode(text) for text in NASTY] == [tokenizer.encode(text) for text in NASTY]
    assert back.fingerprint == tokenizer.fingerprint
    assert back.eos_id == tokenizer.eos_id == 50256


def test_unsupported_rope_scaling_in_gguf_is_refused(tmp_path):
    kind = {"qwen3.rope.scaling.type": "longrope"}
    with pytest.raises(InputError, match="scales its rotary positions by 'longrope'; expected none, linear"):
        read_scaling("qwen3", kind, None, tmp_path)
    kind = {"llama.rope.scaling.type": "yarn", "llama.context_length": 64}
    with pytest.raises(InputError, match="by 'yarn' and by rope_freqs"):
        read_scaling("llama", kind, torch.ones(8), tmp_path)
    with pytest.raises(InputError, match=r"llama.rope.scaling.factor = 0.0; expected a number above 0"):
        read_scaling("llama", kind | {"llama.rope.scaling.factor": 0.0}, None, tmp_path)
    length = {"llama.rope.scaling.original_context_length": 0}
    with pytest.raises(
        InputError, match="original_context_length = 0; expected a whole number of at least 1"
    ):
        read_scaling("llama", kind | length, None, tmp_path)


def broken(backend: RustTokenizer, how: str) -> Tokenizer:
    """A tokenizer that llama.cpp does not support."""
    eos = 0
    if how == "characters":
        return Tokenizer.from_characters("abc")
    if how == "split":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
    if how == "prefix":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if how == "around":
        backend.post_processor = processors.TemplateProcessing("$A !", special_tokens=[("!", 2)])
    if how == "few":
        backend = RustTokenizer(models.BPE(vocab={"a": 0}, merges=[], unk_token="a"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    return Tokenizer(backend, eos_id=None if how == "endless" else eos)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("characters", "vocabulary of kind WordLevel; export with --to hf"),
        ("split", "llama.cpp has no name for"),
        ("prefix", "llama.cpp has no name for"),
        ("few", "llama.cpp has no name for"),
        ("around", "adds other tokens to a text"),
        ("endless", "has no end-of-text token"),
    ],
)
def test_tokenizers_that_gguf_cannot_store_are_refused(how, said, tmp_path):
    folder = save_model(tmp_path / "model", "qwen3")
    backend = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    broken(backend, how).save(folder)
    with pytest.raises(InputError, match=said):
        export_gguf(folder, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_models_and_folders_that_cannot_be_exported_are_refused(tmp_path):
    folder = save_model(tmp_path / "model", "qwen3")
    for name, said in (
        ("gpt-neo", "the family gpt_neo"),
        ("qwen3-bias", "biases in attention"),
        ("qwen3-llama3", "kind llama3 in qwen3"),
        ("loud-yarn", "YaRN with other parameters"),
    ):
        random_model(ONLY_HF[name]).save_pretrained(folder)
        with pytest.raises(InputError, match=f"llama.cpp does not compute .*{said}.*--to hf"):
            export_gguf(folder, tmp_path / "out")
    random_model(replace(CONFIGS["qwen3"], position="alibi")).save_pretrained(folder)
    for export in (export_hf, export_gguf):
        with pytest.raises(InputError, match="has ALiBi positions, which no export format supports"):
            export(folder, tmp_path / "out")
    random_model(GPTConfig(**ROTARY, position="alibi")).save_pretrained(folder)
    for export in (export_hf, export_gguf):
        with pytest.raises(InputError, match="has ALiBi positions, which no export format supports"):
            export(folder, tmp_path / "out")
    random_model(replace(CONFIGS["gpt2"], vocab_size=256)).save_pretrained(folder)
    for export in (export_hf, export_gguf):
        with pytest.raises(InputError, match="has a tokenizer of 320 tokens and a model of 256"):
            export(folder, tmp_path / "out")
    (folder / "tokenizer.json").unlink()
    for export in (export_hf, export_gguf):
        with pytest.raises(InputError, match="model has no tokenizer"):
            export(folder, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("export", [export_hf, export_gguf])
def test_a_full_disk_leaves_no_files(export, tmp_path):
    folder = save_model(tmp_path / "model", "qwen3")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead of ending the process
    try:
        for limit in (0, 3000, 30_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(OSError, match=r"could not be written|File too large"):
                export(folder, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_ctrl_c_leaves_no_files(tmp_path):
    folder = save_random(tmp_path / "model", replace(CONFIGS["qwen3"], n_layer=40, n_inner=8192))

    def press() -> None:
        # Wait until the header is on disk: an interrupt while `gguf` opens the file would leak the file object.
        while not any(p.stat().st_size for p in tmp_path.glob(".out.*/*.gguf")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        export_gguf(folder, tmp_path / "out", "q8_0")
    thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
