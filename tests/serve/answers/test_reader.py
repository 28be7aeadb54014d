"""The reader that is part of the package, and which reader a command opens."""

import pytest
import torch

from gpt_core.common.errors import InputError
from gpt_core.hub import locate
from gpt_core.hub.locate import DEFAULT_READER, SHIPPED
from gpt_core.tasks.lora import LORA_FILE, Lora
from serve.answers.quotes import Quote
from serve.answers.reader import open_reader

TEXT = "Bread was dear. The tower was built by Gustave Eiffel's company in 1889."


@pytest.fixture(scope="module")
def shipped(smollm2):
    return open_reader(None)


def quote(text: str, start: int) -> Quote:
    return Quote(text[start:], 1, "a", "Towers", (), start, len(text), 0.9)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("In which year was the tower built?", "1889"),
        ("When was the tower built?", "1889"),
        ("Whose company built the tower?", "Gustave Eiffel"),
    ],
)
def test_the_shipped_reader_finds_the_words_that_answer(shipped, question, answer):
    found = shipped.read(question, quote(TEXT, TEXT.index("The tower")))
    assert found is not None
    assert answer in found.text
    assert found.text == TEXT[found.start : found.end]
    assert 0 < found.probability <= 1


def test_it_reads_no_chinese(shipped):
    text = "这座塔由古斯塔夫·埃菲尔的公司于1889年建成。"
    assert shipped.read("这座塔是哪一年建成的？", quote(text, 0)) is None


def test_it_is_small_and_changes_the_default_generator():
    files = list((SHIPPED / DEFAULT_READER).iterdir())
    assert sum(file.stat().st_size for file in files) < 60e6
    lora = Lora.load(SHIPPED / DEFAULT_READER)
    assert lora.init_from == "smollm2-135m-instruct"
    assert all(torch.isfinite(tensor).all() for tensor in lora.tensors.values())
    assert {LORA_FILE, "task.json", "README.md"} == {file.name for file in files}


def test_without_its_model_and_with_none_there_is_no_reader(monkeypatch, tmp_path):
    assert open_reader("none") is None
    monkeypatch.setattr(locate, "cache_dir", lambda: tmp_path)
    assert open_reader(None) is None
    with pytest.raises(InputError, match=r"changes smollm2-135m-instruct, which is not here: .*fetch_model"):
        open_reader(DEFAULT_READER)
