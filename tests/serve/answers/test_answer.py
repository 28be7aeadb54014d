"""Answers without HTTP, and the command ask."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from embed import Encoder
from gpt_core import InputError
from gpt_core.generation.engine import Engine
from index import Document, Hit, Index
from index.reading.pages import Pages
from serve import create_app
from serve.answers.answer import (
    GREEDY,
    NOT_FOUND,
    Prepared,
    answer_question,
    ground,
    retrieve,
)
from serve.answers.prompt import MAX_PASSAGE_TOKENS, build_prompt
from serve.answers.quotes import Quoted
from serve.answers.reader import Reader
from serve.ask import as_json, ask, render
from serve.work.loading import load
from tests.serve.conftest import DOCUMENTS, QUESTION, random_gpt, speaker
from tests.tiny_models import save_model

NOTHING = Quoted("not_found", [], 0.0, 0.0)
TRUE = " It became optional in October 2024."


def hit(text, title="T", name="p"):
    return Hit(name, "d", title, text, 0, len(text), 0.0, None, None, {})


@pytest.fixture
def engine(tokenizer):
    return Engine(speaker(tokenizer, TRUE), tokenizer, context=1024)


def test_an_answer_equals_its_streamed_text_and_cites(index, engine):
    pieces = []
    found = answer_question(QUESTION, index, engine, on_text=pieces.append)
    assert found.kind == "generated"
    assert "".join(pieces) == TRUE
    assert found.text == found.draft == TRUE.strip()
    assert found.sentences[0].citation.doc_id == "gil"
    assert found.n_prompt_hits == 4
    assert found.n_prompt_cut == 0


def test_a_filter_restricts_an_answer_to_its_documents(index, engine):
    found = answer_question(QUESTION, index, engine, filter={"doc_id": ["cats", "beijing"]})
    assert {h.doc_id for h in found.hits} == {"cats", "beijing"}
    assert found.kind != "generated"


def test_an_empty_index_says_so_without_generating(tmp_path, encoder, engine):
    with Index.create(tmp_path / "empty", encoder) as empty:
        found = answer_question("Anything?", empty, engine)
    assert (found.kind, found.text, found.draft, found.hits) == ("not_found", NOT_FOUND["en"], "", [])
    assert found.finish_reason is None


def test_prompt_takes_the_best_hits_that_fit(tokenizer):
    hits = [hit(f"{i} " * 200, name=str(i)) for i in range(5)]
    prompt = build_prompt("Why?", hits, tokenizer, 4096, 96)
    text = tokenizer.decode(prompt.token_ids)
    assert prompt.n_hits == MAX_PASSAGE_TOKENS // len(tokenizer.encode(f"T\n{hits[0].text}\n\n"))
    assert hits[prompt.n_hits - 1].text in text
    assert hits[prompt.n_hits].text[:10] not in text
    assert text.index(hits[0].text) < text.index("Why?")
    assert len(prompt.token_ids) < MAX_PASSAGE_TOKENS + 100

    tight = build_prompt("Why?", hits, tokenizer, 400, 96)
    assert (tight.n_hits, tight.n_cut) == (1, 0)
    assert len(tight.token_ids) <= 400 - 96


def test_a_single_hit_that_is_too_long_is_cut_and_counted(tokenizer):
    long = hit("word " * 3000)
    prompt = build_prompt("Why?", [long, hit("short")], tokenizer, 4096, 96)
    assert prompt.n_hits == 1
    n_around = len(build_prompt("Why?", [], tokenizer, 4096, 96).token_ids)
    assert 0 <= n_around + MAX_PASSAGE_TOKENS - len(prompt.token_ids) <= 2
    n_words = 3000 - tokenizer.decode(prompt.token_ids).count("word")
    assert n_words <= prompt.n_cut <= n_words + 2  # and trailing white space
    assert ground(Prepared("Why?", [long], NOTHING, prompt), "Words.", "stop").n_prompt_cut == prompt.n_cut


@pytest.mark.parametrize("context", range(300, 340))
def test_prompt_and_answer_always_fit_the_context(tokenizer, context):
    hits = [
        hit("word " * n + end, name=f"{n}") for n, end in ((97, "."), (50, "\n\n"), (40, "北京 "), (300, "?"))
    ]
    for hits_there in (hits, hits[::-1]):
        prompt = build_prompt(" Why?", hits_there, tokenizer, context, 96)
        assert context - 200 < len(prompt.token_ids) + 96 <= context


def test_a_model_without_a_chat_template_continues_text(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    text = tokenizer.decode(build_prompt("Why?", [hit("Because.")], tokenizer, 512, 96).token_ids)
    assert text == "T\nBecause.\n\nQuestion: Why?\nAnswer:"


def test_special_tokens_in_documents_and_questions_stay_text(tokenizer):
    prompt = build_prompt("<|endoftext|>?", [hit("A <|endoftext|> B")], tokenizer, 512, 96)
    assert tokenizer.eos_id not in prompt.token_ids


@pytest.mark.parametrize("question", ["", " \n", "word " * 2000])
def test_a_question_that_is_empty_or_too_long_is_an_input_error(index, engine, question):
    with pytest.raises(InputError, match=r"empty|shorten it"):
        answer_question(question, index, engine)
    with pytest.raises(InputError, match="shorter question"):
        build_prompt("word " * 2000, [hit("x")], engine.tokenizer, 1024, 96)
    with pytest.raises(InputError, match="shorten it"):
        retrieve("word " * 1100, index)


def test_a_question_and_its_special_tokens_fit_the_embedder_or_are_refused(tmp_path):
    encoder = Encoder.from_pretrained(save_model(tmp_path / "model", "qwen3", eos_after_text=True))
    with Index.create(tmp_path / "index", encoder) as index:
        assert retrieve("?" * (encoder.max_tokens - 1), index) == []
        with pytest.raises(InputError, match=f"{encoder.max_tokens + 1} tokens"):
            retrieve("?" * encoder.max_tokens, index)
    assert encoder.n_truncated == 0


def test_repeated_and_incomplete_sentences_are_left_out():
    hits = [hit("Cats sleep all day. Cats hunt mice.")]
    question = "What about cats?"
    draft = "They sleep all day. They hunt mice. They sleep all day. They hunt"
    looped = ground(Prepared(question, hits, NOTHING), draft, "length")
    assert looped.draft == draft
    assert looped.text == "They sleep all day. They hunt mice."
    assert len(looped.sentences) == 2
    assert (
        ground(Prepared(question, hits, NOTHING), "They hunt mice. They sleep all", "length").text
        == "They hunt mice."
    )
    assert ground(Prepared(question, hits, NOTHING), "They hunt mice. They sleep all", "stop").text.endswith(
        "sleep all"
    )
    assert ground(Prepared(question, hits, NOTHING), "They hunt mi", "length").draft == "They hunt mi"


def test_the_text_has_the_supported_sentences_only():
    hits = [hit("Cats sleep all day. Cats hunt mice. 上海是最大的城市。北京是中国的首都。")]

    def text(draft, question="What about cats?"):
        return ground(Prepared(question, hits, NOTHING), draft, "stop").text

    assert text("Dogs bark at night. Cats sleep all day. Cows graze.\n\nCats hunt mice.") == (
        "Cats sleep all day.\n\nCats hunt mice."
    )
    assert (
        text("Cats sleep all day.\n- Cats hunt mice.\n- Cows graze.")
        == "Cats sleep all day.\n- Cats hunt mice."
    )
    chinese = text("上海是最大的城市。广州盛产荔枝。北京是中国的首都。", "哪个城市最大，首都是哪个？")
    assert chinese == "上海是最大的城市。北京是中国的首都。"
    assert text("Cows graze.") == NOT_FOUND["en"]


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("谁赢了世界杯？", "zh"),
        ("zhizhi 是什么？", "zh"),
        ("Who won?", "en"),
        ("프랑스의 수도는 무엇입니까?", "en"),
        ("日本の首都はどこですか？", "en"),
        ("フランスの首都は？", "en"),
        ("大韓民國의 首都?", "en"),
        ("ﾌﾗﾝｽ 首都?", "en"),
        ("ประเทศไทย?", "en"),
    ],
)
def test_the_answer_that_nothing_was_found_is_chinese_for_chinese_questions_only(question, language):
    assert ground(Prepared(question, [], NOTHING), "", None).text == NOT_FOUND[language]


def test_an_index_of_precomputed_vectors_cannot_be_served(tmp_path, engine):
    with (
        Index.create(tmp_path / "index", dimension=4) as bare,
        pytest.raises(InputError, match="precomputed vectors"),
    ):
        create_app(bare, engine)


# --- the command ---


@pytest.fixture
def folders(tmp_path, tokenizer):
    """(index, model): paths of an index and of the model folder that is its embedder."""
    model = tmp_path / "model"
    random_gpt().save_pretrained(model)
    tokenizer.save(model)
    with Index.create(tmp_path / "saved", Encoder.from_pretrained(model)) as index:
        index.add(DOCUMENTS)
    return str(tmp_path / "saved"), str(model)


def test_ask_answers_each_question(folders, capsys):
    index, model = folders
    ask(["First?", "Second?"], index=index, answer="generate", generator=model, max_tokens=4)
    out = capsys.readouterr().out
    assert out.index("? First?") < out.index(NOT_FOUND["en"]) < out.index("? Second?")


@pytest.mark.parametrize(
    ("index", "generator", "message"),
    [("nowhere", None, "has no index"), (None, "no-such-model", "no-such-model")],
)
def test_ask_names_what_is_missing(folders, index, generator, message):
    with pytest.raises(InputError, match=message):
        ask(["Why?"], index=index or folders[0], answer="generate", generator=generator or folders[1])


def test_ask_needs_a_question_and_an_index_that_has_an_embedder(folders, tmp_path):
    index, model = folders
    for questions in ([], ["Why?", " "]):
        with pytest.raises(InputError, match=r"There is no question|A question is empty"):
            ask(questions, index=index, generator=model)
    Index.create(tmp_path / "vectors", dimension=4).close()
    with pytest.raises(InputError, match="precomputed vectors"):
        ask(["Why?"], index=str(tmp_path / "vectors"), generator=model)


def test_ask_with_another_embedder_names_both(folders, tmp_path, tokenizer):
    index, model = folders
    random_gpt(seed=1).save_pretrained(tmp_path / "other")
    tokenizer.save(tmp_path / "other")
    with pytest.raises(InputError, match=r"model.*other"):
        ask(["Why?"], index=index, embedder=str(tmp_path / "other"), generator=model)


def test_render_numbers_sources_and_marks_unsupported_sentences():
    hits = [hit("Cats sleep all day.", "Cats", "a"), hit("Mice fear cats.", "Mice\x1b[2J", "b")]
    prepared = Prepared("What do cats do?", hits, NOTHING)
    found = ground(prepared, "Cats sleep all day. Dogs bark. They sleep all day long.", "stop")
    text = render(found)
    assert text.startswith("  Cats sleep all day. [1] Dogs bark. [?]")
    assert "[1] Cats (d, 0–19): Cats sleep all day." in text
    lost = render(ground(Prepared("Who won?", hits, NOTHING), "Spain won.", "stop"))
    assert NOT_FOUND["en"] in lost
    assert "Spain won." in lost
    assert "nearest: Mice\ufffd[2J (b)" in lost


def test_the_generators_dtype_does_not_change_the_embedders(folders):
    index, model = folders

    def loaded(dtype):
        opened, engine = load(index, None, model, max_running=1, dtype=dtype)
        with opened:
            vector = opened.encoder.encode_query("Why?")
            found = answer_question(QUESTION, opened, engine, params=replace(GREEDY, max_new_tokens=4))
        assert found.draft
        return vector, engine.model, opened.encoder.model

    vector, generator, embedder = loaded("float32")
    assert generator is embedder  # one model in memory
    for dtype in ("bfloat16", "int8", "auto"):
        other, generator, embedder = loaded(dtype)
        assert generator is not embedder
        assert generator.dtype == torch.bfloat16 or dtype == "auto"
        assert (other == vector).all()
    with pytest.raises(InputError, match="float16"):
        loaded("float16")


@pytest.mark.network
def test_smollm2_answers_and_declines(tmp_path, smollm2):
    text = (
        "The Zorblatt bridge is in the town of Quillby. It was built in 1887 by the engineer Mira Tandel. "
        "It has four stone arches and a wooden railing."
    )
    encoder = Encoder.from_pretrained(smollm2)
    with Index.create(tmp_path / "index", encoder) as index:
        index.add([Document("bridge", text, "Zorblatt bridge"), *DOCUMENTS])
        engine = Engine(encoder.model, encoder.tokenizer, max_running=1, context=1024)
        found = answer_question("When was the Zorblatt bridge built?", index, engine, k=2)
        assert found.kind == "generated"
        assert "1887" in found.text
        citation = found.sentences[0].citation
        assert "1887" in citation.text
        assert text[citation.start : citation.end] == citation.text
        assert (
            answer_question("Who won the football World Cup in 2010?", index, engine, k=2).kind == "not_found"
        )


def test_quotes_and_citations_name_the_pages(index):
    text = "The lighthouse keeper lives alone.\n\nThe lighthouse of Oakwick was built in 1889.\n\nIt is red."
    pages = Pages("page", (0, text.index("The lighthouse of"), text.index("It is red")))
    index.add(Document("oak.pdf", text, "Oakwick", pages=pages))
    question = "When was the lighthouse of Oakwick built?"
    found = answer_question(question, index)
    assert (found.kind, str(found.quotes[0].pages)) == ("quote", "page 2")
    assert "(oak.pdf, page 2), " in render(found).replace("\n  ", " ")
    told = json.loads(as_json(question, found))["quotes"][0]
    assert told["pages"] == {"unit": "page", "first": 2, "last": 2, "breaks": []}
    prepared = Prepared(question, found.hits, Quoted("answered", found.quotes, 1.0, 1.0))
    cited = ground(prepared, "The lighthouse of Oakwick was built in 1889.", "stop")
    assert str(cited.sentences[0].citation.pages) == "page 2"
    assert "[1] Oakwick (oak.pdf, page 2): The lighthouse" in render(cited).replace("\n  ", " ")


def test_a_reader_finds_the_short_answer_inside_the_quote(index, reader):
    found = answer_question(QUESTION, index, reader=Reader(reader))
    assert found.kind in ("quote", "perhaps")
    assert found.span.text == "October 2024"
    assert DOCUMENTS[0].text[found.span.start : found.span.end] == "October 2024"
    assert found.quotes[0].start <= found.span.start
    assert found.span.end <= found.quotes[0].end
    assert found.span.probability > 0.5
    assert "October 2024 (" in render(found).replace("\n", " ")
    assert json.loads(as_json(QUESTION, found))["span"]["text"] == "October 2024"
    assert answer_question(QUESTION, index).span is None
    assert json.loads(as_json(QUESTION, answer_question(QUESTION, index)))["span"] is None
    cats = answer_question("When does a cat hunt mice?", index, reader=Reader(reader))
    assert (cats.quotes[0].doc_id, cats.span) == ("cats", None)


def test_a_model_of_another_task_is_no_reader(reader, tmp_path):
    shutil.copytree(reader, tmp_path / "other")
    path = tmp_path / "other" / "task.json"
    with pytest.raises(InputError, match=r"has no task\.json"):
        Reader(tmp_path)
    (tmp_path / "other" / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is damaged"):
        _ = Reader(tmp_path / "other").model
    assert path.exists()
