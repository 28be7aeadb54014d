"""GGUF files: a small file for each architecture, and SmolLM2 compared with transformers."""

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf.gguf_writer import GGUFValue

from gpt_core import GPT, Engine, InputError, SamplingParams, Tokenizer
from gpt_core.tokenizer.builtin import ASSETS, gpt2_rust
from gpt_core.tokenizer.tokenizer import PROBE

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GPT2_PARTS = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
ROTARY_PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TOP = {
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def write(path, model, arch, pre="gpt-2", kind="gpt2", **more):
    """Write `model` as llama.cpp's converter does, with GPT-2's tokenizer cut to the model's vocabulary."""
    w = gguf.GGUFWriter(path, arch)
    c = model.config
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.n_inner or 4 * c.hidden_size if arch == "gpt2" else c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    if arch == "gpt2":
        w.add_layer_norm_eps(c.layer_norm_epsilon)
    else:
        w.add_head_count_kv(c.num_key_value_heads)
        w.add_layer_norm_rms_eps(c.rms_norm_eps)
        w.add_rope_freq_base(c.rope_parameters["rope_theta"])
        w.add_key_length(c.head_dim)
    tokens = sorted(gpt2_rust().get_vocab().items(), key=lambda item: item[1])[: c.vocab_size]
    w.add_tokenizer_model(kind)
    w.add_tokenizer_pre(pre)
    w.add_token_list([t for t, _ in tokens])
    merges = (ASSETS / "vocab.bpe").read_text().splitlines()[1:]
    w.add_token_merges(merges[: c.vocab_size - 256])
    w.add_eos_token_id(7)
    for key, value in more.items():
        w.kv_data[0][key.replace("__", ".")] = GGUFValue(value, gguf.GGUFValueType.get_type(value))
    for name, p in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        path_, kind_ = name.rsplit(".", 1)
        parts = path_.split(".")
        if len(parts) > 2 and parts[1] in ("h", "layers"):
            part = ".".join(parts[3:])
            new = f"blk.{parts[2]}.{(GPT2_PARTS | ROTARY_PARTS)[part]}.{kind_}"
        else:
            new = f"{TOP[path_]}.{kind_}"
        value = p.t() if ".c_" in name and kind_ == "weight" else p
        w.add_tensor(new, np.ascontiguousarray(value.float().numpy()))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def random_model(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def gpt2():
    return random_model(
        transformers.GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    )


@torch.no_grad()
@pytest.mark.parametrize("arch", ["gpt2", "qwen3", "qwen3-untied"])
def test_weights_and_tokenizer_of_each_architecture(arch, tmp_path):
    if arch == "gpt2":
        theirs = gpt2()
    else:
        config = transformers.Qwen3Config(
            **SHAPE, vocab_size=300, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
            rope_theta=5e4, tie_word_embeddings=arch == "qwen3",
        )  # fmt: skip
        theirs = random_model(config)
    write(tmp_path / "model.gguf", theirs, arch.split("-")[0])
    ours, tokenizer = GPT.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    ids = torch.randint(0, 300, (2, 40))
    assert (ours(ids).logits - theirs(ids).logits).abs().max() < 1e-4
    assert ours.config.eos_id == tokenizer.eos_id == 7
    assert tokenizer.decode(tokenizer.encode(PROBE)) == PROBE


def test_the_eot_token_ends_a_text_with_and_without_an_eos_token(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, gpt2(), "gpt2", tokenizer__ggml__eot_token_id=9)
    assert GPT.from_pretrained(tmp_path).config.eos_id == (7, 9)
    assert Tokenizer.from_pretrained(tmp_path).eos_id == 7
    write(path, gpt2(), "gpt2")
    path.write_bytes(path.read_bytes().replace(b"ggml.eos_token_id", b"ggml.eot_token_id"))
    assert GPT.from_pretrained(tmp_path).config.eos_id == Tokenizer.from_pretrained(tmp_path).eos_id == 7


@pytest.mark.parametrize(
    ("pre", "key", "added"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False), ("gpt-2", True, True)],
)
def test_without_a_key_the_begin_token_is_added_as_in_llama_cpp(tmp_path, pre, key, added):
    more = {} if key is None else {"tokenizer__ggml__add_bos_token": key}
    write(tmp_path / "model.gguf", gpt2(), "gpt2", pre, tokenizer__ggml__bos_token_id=5, **more)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("a", add_special_tokens=True) == [5] * added + tokenizer.encode("a")


def test_tokens_end_a_text_by_their_text_as_in_llama_cpp(tmp_path):
    tokens = [t for t, _ in sorted(gpt2_rust().get_vocab().items(), key=lambda item: item[1])[:300]]
    ends = ["<|eot_id|>", "<|im_end|>", "<|endoftext|>", "<|eom_id|>", "<|end|>"]
    tokens[290:297] = ["<|im_start|>", *ends, "<|file_sep|>"]
    path = tmp_path / "model.gguf"
    write(path, gpt2(), "gpt2", tokenizer__ggml__tokens=tokens, tokenizer__ggml__merges=["h e"])
    model, tokenizer = GPT.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    assert set(model.config.eos_ids) == {7, *range(291, 297)}
    assert model.config.eos_ids[0] == tokenizer.eos_id == 7
    # they are special tokens even where the file calls them normal ones
    assert tokenizer.encode_trusted("<|im_end|>") == [292]
    assert 292 not in tokenizer.encode("<|im_end|>")
    path.write_bytes(path.read_bytes().replace(b"ggml.eos_token_id", b"ggml.mask_tokenid"))
    assert (
        GPT.from_pretrained(tmp_path).config.eos_ids[0] == Tokenizer.from_pretrained(tmp_path).eos_id == 291
    )


def test_bad_files_are_refused(tmp_path):
    model = gpt2()
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUX" + b"\0" * 100)
    with pytest.raises(InputError, match="not a valid GGUF file"):
        GPT.from_pretrained(tmp_path)
    write(path, model, "gpt2")
    whole = path.read_bytes()
    for size in (20, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="not a valid GGUF file"):
            GPT.from_pretrained(tmp_path)
    write(path, model, "gpt2", pre="martian")
    with pytest.raises(InputError, match="has the pre-tokenizer 'martian'"):
        Tokenizer.from_pretrained(tmp_path)
    write(path, model, "gpt2", kind="llama")
    with pytest.raises(InputError, match="kind 'llama'; expected gpt2"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "second.gguf").write_bytes(b"")
    with pytest.raises(InputError, match="several GGUF files"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("general__architecture", "bert", "has architecture 'bert'; expected gpt2, llama or qwen3"),
        (
            "qwen3__embedding_length",
            "32",
            "qwen3.embedding_length = '32'; expected a whole number of at least 1",
        ),
        ("qwen3__block_count", 0, "qwen3.block_count = 0; expected a whole number of at least 1"),
        ("qwen3__block_count", 3, "lacks 11 weights that its config requires, first blocks.2"),
        ("qwen3__attention__head_count_kv", [2, 2], r"head_count_kv = \[2, 2\]; expected a whole number"),
        ("qwen3__rope__freq_base", -1.0, r"qwen3.rope.freq_base = -1.0; expected a number above 0"),
        ("qwen3__rope__dimension_count", 8, "dimension_count = 8; this GPT rotates whole heads, 16 wide"),
        ("qwen3__rope__scaling__yarn_beta_fast", 16.0, "yarn_beta_fast = 16.0; this GPT computes only 32.0"),
        ("qwen3__rope__scaling__type", "longrope", "scales its rotary positions by 'longrope'"),
        ("qwen3__rope__scaling__factor", "4", "qwen3.rope.scaling.factor = '4'; expected a number above 0"),
        ("tokenizer__ggml__tokens", 300, "has no list of strings as tokenizer.ggml.tokens"),
        ("tokenizer__ggml__eos_token_id", 300, "eos_token_id = 300; expected an id below 300"),
        ("tokenizer__ggml__eot_token_id", 300, "eot_token_id = 300; expected an id below 300"),
    ],
)
def test_unsupported_values_are_refused(tmp_path, key, value, said):
    config = transformers.Qwen3Config(
        **SHAPE, vocab_size=300, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    write(tmp_path / "model.gguf", random_model(config), "qwen3", **{key: value})
    with pytest.raises(InputError, match=said):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("blk.0.attn_norm.weight", "blk.0_attn_norm.weight"),
        ("blk.0.attn_norm.weight", "blk.x.attn_norm.weight"),
        ("blk.0.attn_norm.weight", "blk...............norm"),
        ("output_norm.weight", "output_norm_weight"),
    ],
)
def test_tensors_with_unknown_names_are_refused(tmp_path, name, other):
    path = tmp_path / "model.gguf"
    write(path, gpt2(), "gpt2")
    path.write_bytes(path.read_bytes().replace(name.encode(), other.encode()))
    with pytest.raises(InputError, match="lacks 1 weights that its config requires, first"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("n_head", [5, 8, 1000])
def test_matrices_that_do_not_match_the_number_of_heads_are_refused(tmp_path, n_head):
    config = transformers.LlamaConfig(
        **SHAPE, vocab_size=300, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True
    )
    shape = {"llama__attention__head_count": n_head, "llama__attention__head_count_kv": n_head}
    write(tmp_path / "model.gguf", random_model(config), "llama", **shape)
    with pytest.raises(InputError, match=r"attn\.q\.weight has shape \(64, 32\), its config requires"):
        GPT.from_pretrained(tmp_path)


def test_an_inconsistent_vocabulary_is_refused(tmp_path):
    path, model = tmp_path / "model.gguf", gpt2()
    write(path, model, "gpt2", tokenizer__ggml__token_type=[1] * 5)
    with pytest.raises(InputError, match="has 300 tokens but 5 token types"):
        Tokenizer.from_pretrained(tmp_path)
    write(path, model, "gpt2", tokenizer__ggml__token_type=1)
    with pytest.raises(InputError, match="300 tokens but no list of token types"):
        Tokenizer.from_pretrained(tmp_path)
    write(path, model, "gpt2", tokenizer__ggml__merges=[1, 2])
    with pytest.raises(InputError, match=r"no list of strings as tokenizer\.ggml\.merges"):
        Tokenizer.from_pretrained(tmp_path)
    longest = "a" * 300  # longer than every token: `tokenizers` panics on it
    write(path, model, "gpt2", tokenizer__ggml__merges=[f"a {longest}"])
    with pytest.raises(InputError, match="do not match each other"):
        Tokenizer.from_pretrained(tmp_path)
    write(path, model, "gpt2", tokenizer__ggml__merges=["no merge"])
    with pytest.raises(InputError, match="a vocabulary and merges that do not match each other"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.network
def test_smollm2_replies_as_it_does_in_transformers(smollm2):
    """The next test holds such a reply against transformers; loading the file there takes much longer."""
    model, tokenizer = GPT.from_pretrained(smollm2), Tokenizer.from_pretrained(smollm2)
    prompt = tokenizer.chat([{"role": "user", "content": "Why is the sky blue?"}])
    engine = Engine(model, tokenizer, max_running=1, context=len(prompt) + 16)
    request = engine.submit(prompt, SamplingParams(max_new_tokens=16, temperature=0))
    engine.run()
    reply = "The answer to this question lies in the intricate dance of light and color. The"
    assert tokenizer.decode(request.token_ids) == reply


@pytest.mark.slow
@pytest.mark.network
def test_smollm2_equals_transformers_own_gguf_loading(smollm2):
    """Logits within 1e-3, the same 64 greedy tokens, the same tokenizer and chat template."""
    file = next(smollm2.glob("*.gguf")).name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2, gguf_file=file, dtype=torch.float32
    ).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2, gguf_file=file)
    ours, tokenizer = GPT.from_pretrained(smollm2), Tokenizer.from_pretrained(smollm2)
    assert tokenizer.encode(PROBE) == their_tokenizer.encode(PROBE)
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    prompt = tokenizer.chat(messages)
    assert prompt == their_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    engine = Engine(ours, tokenizer, max_running=1, context=len(prompt) + 64)
    request = engine.submit(prompt, SamplingParams(max_new_tokens=64, temperature=0))
    engine.run()
    ids = torch.tensor([prompt + request.token_ids])
    with torch.no_grad():
        expected = theirs(ids).logits
        assert (ours(ids).logits - expected).abs().max() < 1e-3
    assert request.token_ids == expected[0, len(prompt) - 1 : -1].argmax(-1).tolist()
    assert len(request.token_ids) == 64 or request.finish_reason == "stop"
