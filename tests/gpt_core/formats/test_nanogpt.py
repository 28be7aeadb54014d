"""Checkpoints of nanoGPT and small-gpt: the same logits and ids as in those projects, and invalid files."""

import os
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt_core import GPT, InputError, Tokenizer
from tests import commands

ROOT = Path(__file__).parents[3]
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 24}
NANOGPT = {"ln1": "ln_1", "o": "attn.c_proj", "ln2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}
SMALL_GPT = {
    "ln1": "ln1", "q": "attention.W_q", "k": "attention.W_k", "v": "attention.W_v", "o": "attention.out_net",
    "ln2": "ln2", "up": "ffn.dense1", "down": "ffn.out_net",
}  # fmt: skip
TEXT = "To be, or not to be:\nthat is the question.\n"
DIALOGUES = "你好\n你好啊！\n\n天上有云\n\n\n是是是\n🙂 好"


def weights_of(names, vocab_size, bias, fused):
    """Random weights under the names of one of the two projects."""
    torch.manual_seed(0)
    width = SHAPE["n_embd"]
    sizes = {"o": (width, width), "up": (4 * width, width), "down": (width, 4 * width)}
    sizes |= {"ln1": (width,), "ln2": (width,)}
    sizes |= {"qkv": (3 * width, width)} if fused else dict.fromkeys("qkv", (width, width))
    made = {
        "transformer.wte.weight": (vocab_size, width),
        "transformer.wpe.weight": (SHAPE["block_size"], width),
    }
    parts = {
        f"transformer.h.{i}.{names[key]}": s for i in range(SHAPE["n_layer"]) for key, s in sizes.items()
    }
    for name, size in (parts | {"transformer.ln_f": (width,)}).items():
        made[f"{name}.weight"] = size
        if bias:
            made[f"{name}.bias"] = size[:1]
    weights = {name: torch.randn(size) * 0.4 for name, size in made.items()}
    return weights | {"lm_head.weight": weights["transformer.wte.weight"]}


def reference(weights, names, ids):
    """Logits (B, T, V) of the graph that both projects compute, step by step."""

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights.get(f"{name}.bias"), 1e-5)

    n_tokens, width = ids.shape[1], SHAPE["n_embd"]
    size = width // SHAPE["n_head"]
    later = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][:n_tokens]
    for i in range(SHAPE["n_layer"]):
        block = f"transformer.h.{i}."
        h = norm(block + names["ln1"], x)
        if "qkv" in names:
            q, k, v = linear(block + names["qkv"], h).split(width, dim=-1)
        else:
            q, k, v = (linear(block + names[part], h) for part in "qkv")
        heads = []
        for a in range(0, width, size):
            scores = q[..., a : a + size] @ k[..., a : a + size].mT / size**0.5
            heads.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ v[..., a : a + size])
        x = x + linear(block + names["o"], torch.cat(heads, -1))
        h = linear(block + names["up"], norm(block + names["ln2"], x))
        x = x + linear(block + names["down"], h * 0.5 * (1 + torch.erf(h / 2**0.5)))
    return norm("transformer.ln_f", x) @ weights["lm_head.weight"].T


def write_nanogpt(folder, weights, vocab_size, bias, **more):
    folder.mkdir(exist_ok=True)
    args = SHAPE | {"vocab_size": vocab_size, "bias": bias, "dropout": 0.1}
    content = {
        "model": weights,
        "optimizer": {"state": {0: torch.zeros(3)}},
        "model_args": args,
        "iter_num": 7,
    }
    content |= {"best_val_loss": torch.tensor(1.5), "config": {"dataset": "shakespeare_char"}}
    torch.save(content | more, folder / "ckpt.pt")


def write_meta(folder, text=TEXT, **more):
    characters = sorted(set(text))
    meta = {"vocab_size": len(characters), "stoi": {c: i for i, c in enumerate(characters)}}
    meta["itos"] = dict(enumerate(characters))
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta | more))


def write_small_gpt(folder, weights, vocab_size, bias, **more):
    folder.mkdir(exist_ok=True)
    content = SHAPE | {"vocab_size": vocab_size, "bias": bias, "global_step": 60, "global_epoch": 1}
    content |= {"dataset": "data/train.txt", "state_dict": weights, "optimizer": {"state": {}}}
    torch.save(content | more, folder / "cpt60.pth")


@pytest.fixture
def nanogpt(tmp_path):
    weights = weights_of(NANOGPT | {"qkv": "attn.c_attn"}, len(set(TEXT)), True, True)
    write_nanogpt(tmp_path / "nanogpt", weights, len(set(TEXT)), True)
    write_meta(tmp_path / "nanogpt")
    return tmp_path / "nanogpt"


def vocabulary(dialogues):
    """The tokens of small-gpt in the order of their ids, and the tokens of each dialogue."""
    tokens = [["<sep>" if c == "\n" else c for c in dialogue] for dialogue in dialogues.split("\n\n")]
    counts = Counter(token for dialogue in tokens for token in dialogue)
    common = sorted(counts.items(), key=lambda item: item[1], reverse=True)
    return ["<unk>", "<sep>", "<pad>", *(token for token, _ in common if token != "<sep>")], tokens


@pytest.fixture
def small_gpt(tmp_path):
    n_tokens = len(vocabulary(DIALOGUES)[0])
    write_small_gpt(tmp_path / "small", weights_of(SMALL_GPT, n_tokens, True, False), n_tokens, True)
    (tmp_path / "small" / "train.txt").write_text(DIALOGUES, encoding="utf-8")
    return tmp_path / "small"


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_logits_equal_the_reference_here_and_after_export_to_hugging_face(tmp_path, bias, compiled):
    ids = torch.randint(0, 50, (3, SHAPE["block_size"]))
    projects = (
        (write_nanogpt, NANOGPT | {"qkv": "attn.c_attn"}, True),
        (write_small_gpt, SMALL_GPT, False),
    )
    for write, names, fused in projects:
        weights = weights_of(names, 50, bias, fused)
        expected = reference(weights, names, ids)
        mask = {
            f"transformer.h.0.{'attn.bias' if fused else 'attention.attention.mask'}": torch.ones(1, 24, 24)
        }
        stored = {("_orig_mod." if compiled else "") + name: w for name, w in (weights | mask).items()}
        write(tmp_path / names["o"], stored, 50, bias)
        ours = GPT.from_pretrained(tmp_path / names["o"])
        assert (ours(ids).logits - expected).abs().max() < 1e-4
        ours.save_pretrained(tmp_path / "hf")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
        assert (theirs(ids).logits - expected).abs().max() < 1e-4
        assert GPT.from_pretrained(tmp_path / "hf").config == ours.config


def test_nanogpts_characters_are_read_from_its_meta_file(nanogpt, tmp_path):
    tokenizer = Tokenizer.from_pretrained(nanogpt)
    stoi = {c: i for i, c in enumerate(sorted(set(TEXT)))}
    assert tokenizer.encode(TEXT) == [stoi[c] for c in TEXT]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.fingerprint == Tokenizer.from_characters(TEXT).fingerprint
    with pytest.raises(InputError, match="'Z'"):
        tokenizer.encode("Z")


def test_a_nanogpt_of_gpt2s_size_without_a_meta_file_uses_gpt2s_bpe(tmp_path):
    write_nanogpt(tmp_path, weights_of(NANOGPT | {"qkv": "attn.c_attn"}, 50304, False, True), 50304, False)
    tokenizer, model = Tokenizer.from_pretrained(tmp_path), GPT.from_pretrained(tmp_path)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert (model.config.vocab_size, model.config.eos_ids, tokenizer.eos_id) == (50304, (50256,), 50256)


def test_small_gpts_vocabulary_is_rebuilt_from_its_training_text(small_gpt, tmp_path):
    tokenizer = Tokenizer.from_pretrained(small_gpt)
    tokens, dialogues = vocabulary(DIALOGUES)
    for dialogue in dialogues:
        text = "".join("\n" if token == "<sep>" else token for token in dialogue)
        assert tokenizer.encode(text) == [tokens.index(token) for token in dialogue]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("月<pad>") == [0] * 6  # unknown characters, not tokens
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocab_size) == (2, 2, len(tokens))
    assert GPT.from_pretrained(small_gpt).config.eos_ids == (1, 2)
    turns = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
    assert tokenizer.decode(tokenizer.chat(turns)) == "你好\n好\n"
    with pytest.raises(InputError, match="small-gpt does not support system prompts"):
        tokenizer.chat([{"role": "system", "content": "好"}])
    tokenizer.save(tmp_path / "saved")
    again, theirs = (
        Tokenizer.from_pretrained(tmp_path / "saved"),
        AutoTokenizer.from_pretrained(tmp_path / "saved"),
    )
    text = "天上有云\n是"
    assert again.encode(text) == theirs(text)["input_ids"] == tokenizer.encode(text)
    assert again.fingerprint == tokenizer.fingerprint


def test_the_sample_command_reads_a_nanogpt_checkpoint(nanogpt):
    command = ["scripts/sample.py", "--model", nanogpt, "--prompt", "To be", "--seed", "1"]
    done = commands.run([*command, "--max_new_tokens", "8"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("To be")
    assert set(done.stdout) <= set(TEXT)


def test_vocabulary_files_must_match_their_checkpoint(nanogpt, small_gpt):
    (small_gpt / "train.txt").write_text("".join(map(chr, range(0x4E00, 0x4F00))))
    with pytest.raises(InputError, match=r"makes a vocabulary of 259 tokens, but cpt60\.pth has \d+"):
        Tokenizer.from_pretrained(small_gpt)
    (small_gpt / "train.txt").write_bytes("好".encode("gbk"))
    with pytest.raises(InputError, match=r"train\.txt is not UTF-8 at byte 0"):
        Tokenizer.from_pretrained(small_gpt)
    (small_gpt / "train.txt").unlink()
    with pytest.raises(InputError, match=r"lacks train\.txt, the text that cpt60\.pth was trained on"):
        Tokenizer.from_pretrained(small_gpt)
    write_meta(nanogpt, "other data")
    with pytest.raises(InputError, match=r"meta\.pkl has 8 characters, but ckpt\.pt has \d+ tokens"):
        Tokenizer.from_pretrained(nanogpt)
    for broken in (
        {"stoi": None},
        {"stoi": {"ab": 0}},
        {"stoi": {"a": 1}},
        {"stoi": {"a": "0"}},
        {"stoi": {"\ud800": 0}},
    ):
        write_meta(nanogpt, **broken)
        with pytest.raises(InputError, match=r"meta\.pkl has no table `stoi`"):
            Tokenizer.from_pretrained(nanogpt)
    (nanogpt / "meta.pkl").unlink()
    with pytest.raises(
        InputError, match=r"put the meta\.pkl of nanoGPT's data folder \(shakespeare_char\) beside"
    ):
        Tokenizer.from_pretrained(nanogpt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": "2"}, "has n_layer = '2'; expected a whole number of at least 1"),
        ({"n_head": 3}, "n_embd is 16; GPT-2 needs a multiple of n_head, which is 3"),
        ({"n_layer": 3}, "lacks 16 weights that its config requires, first blocks.2"),
        ({"n_embd": 32}, r"has shape \(\d+, 16\), its config requires"),
        ({"dataset": ".."}, r"lacks \.\., the text"),
    ],
)
def test_inconsistent_checkpoints_are_refused(small_gpt, change, message):
    content = torch.load(small_gpt / "cpt60.pth")
    torch.save(content | change, small_gpt / "cpt60.pth")
    with pytest.raises(InputError, match=message):
        (GPT if "dataset" not in change else Tokenizer).from_pretrained(small_gpt)


@pytest.mark.parametrize(("part", "shape"), [("bias", (4,)), ("weight", (47, 16)), ("weight", (2,))])
def test_a_fused_matrix_of_another_shape_is_named_with_its_shape(nanogpt, part, shape):
    content = torch.load(nanogpt / "ckpt.pt")
    content["model"][f"transformer.h.1.attn.c_attn.{part}"] = torch.zeros(shape)
    torch.save(content, nanogpt / "ckpt.pt")
    with pytest.raises(InputError, match=rf"blocks\.1\.attn\.[qv]\.{part} has shape .*, its config requires"):
        GPT.from_pretrained(nanogpt)


def test_classifiers_and_checkpoints_of_other_projects_are_refused(small_gpt):
    content = torch.load(small_gpt / "cpt60.pth")
    content["state_dict"]["lm_head.weight"] = torch.zeros(2, 16)
    torch.save(content, small_gpt / "cpt60.pth")
    with pytest.raises(InputError, match="has a head of 2 outputs for 14 tokens; that is a classifier"):
        GPT.from_pretrained(small_gpt)
    for other in ({"model": content["state_dict"]}, [1, 2], {"model": 1, "model_args": {}}):
        torch.save(other, small_gpt / "cpt60.pth")
        for thing in (GPT, Tokenizer):
            with pytest.raises(InputError, match=r"cpt60\.pth is not a checkpoint of nanoGPT"):
                thing.from_pretrained(small_gpt)
    torch.save(content, small_gpt / "cpt120.pth")
    with pytest.raises(InputError, match=r"several \.pth files \(cpt120\.pth, cpt60\.pth\)"):
        GPT.from_pretrained(small_gpt)


class Payload:
    """An object that runs a command when it is unpickled."""

    def __init__(self, canary):
        self.command = f"touch {canary}"

    def __reduce__(self):
        return os.system, (self.command,)


def test_no_pickle_is_executed(nanogpt, small_gpt, tmp_path):
    canary = tmp_path / "canary"
    evil = Payload(canary)
    (nanogpt / "meta.pkl").write_bytes(pickle.dumps({"stoi": {"a": 0}, "itos": evil}))
    with pytest.raises(InputError, match=r"meta\.pkl holds more than plain values \(STACK_GLOBAL\)"):
        Tokenizer.from_pretrained(nanogpt)
    for path in (nanogpt / "ckpt.pt", small_gpt / "cpt60.pth"):
        content = torch.load(path)
        for zipped in (True, False):
            torch.save(content | {"optimizer": evil}, path, _use_new_zipfile_serialization=zipped)
            for thing in (GPT, Tokenizer):
                with pytest.raises(InputError, match="a pickle is never executed here"):
                    thing.from_pretrained(path.parent)
        path.write_bytes(pickle.dumps(evil))
        with pytest.raises(InputError, match=r"is damaged, or not a file of torch\.save"):
            GPT.from_pretrained(path.parent)
    assert not canary.exists()
    pickle.loads(pickle.dumps(evil))
    assert canary.exists()  # the payload works when it is unpickled
