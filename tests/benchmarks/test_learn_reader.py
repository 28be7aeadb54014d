"""The benchmark of readers: a GPT's blocks and a BERT, trained with the same loop."""

import json

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from benchmarks.learn_reader import bench_learn_reader, load_baseline
from tests.gpt_core.tasks.tiny_tasks import write_tasks
from tests.tiny_models import save_model


def save_bert(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "is", "now", "red", "blue", "colour", "?"]
    words += [str(i) for i in range(10)] + [f"##{i}" for i in range(10)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
    )
    BertModel(shape).save_pretrained(folder)


def test_both_bodies_learn(tmp_path, capsys):
    write_tasks(tmp_path, 80)
    save_model(tmp_path / "gpt", "qwen3")
    save_bert(tmp_path / "bert")
    data = str(tmp_path / "span.jsonl")
    bench_learn_reader(
        train_data=data, test_data=data, model=str(tmp_path / "gpt"), blocks=(1, 2), baseline=str(tmp_path / "bert"),
        out_dir=str(tmp_path / "out"), max_iters=60, max_tokens=32, learning_rate=5e-3, no_answer=0.0, questions=40,
    )  # fmt: skip
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [row["blocks"] for row in rows] == [1, 2, 2]
    assert all(row["F1"] > 0.8 for row in rows)
    assert all(row["milliseconds"] > 0 for row in rows)


def test_padding_does_not_change_a_berts_states(tmp_path):
    save_bert(tmp_path / "bert")
    body, tokenizer = load_baseline(str(tmp_path / "bert"))
    body.eval()
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("the red is now"), tokenizer.eos_id]])
    padded = torch.nn.functional.pad(ids, (0, 5), value=tokenizer.pad_id)
    with torch.no_grad():
        torch.testing.assert_close(
            body(padded).hidden[:, : ids.shape[1]], body(ids).hidden, atol=1e-5, rtol=0
        )
