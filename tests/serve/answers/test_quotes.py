"""Candidates, their ranking, and quotes: verbatim, in their place, and declined where the corpus does not say."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_core.common.errors import InputError
from index import Document, Hit, Index
from serve.answers.answer import answer_question
from serve.answers.candidates import find_candidates
from serve.answers.features import NAMES, features
from serve.answers.question import Question, answer_type
from serve.answers.quotes import quote
from serve.answers.ranker import CONFIDENCE_NAMES, SHIPPED, Ranker, Thresholds, ranker_for

NOTES = """# Training

Runs write checkpoints.

## Kills and restarts

Kill it and run it again: it resumes from its last checkpoint. Results are bit-identical.

## Caching

The cache expires after fifteen minutes. It is kept in Redis.

```sh
make cache
```

| part | size |
|---|---|
| cache | 4 GB |

Reasons to bypass it:

- The data are personal.
- The data change every second.
"""
CHINESE = """# 会议纪要

一、缓存方案：决定采用 Redis 集群，过期时间设为十五分钟。
二、日志保留三十天，由运维组负责清理。
"""
DOCUMENTS = [
    Document("notes", NOTES, "Notes"),
    Document("minutes", CHINESE, "会议纪要"),
    Document(
        "bridge",
        "The Zorblatt bridge is in Quillby. It was built in 1887 by Mira Tandel. It has four arches.",
        "Bridge",
    ),
    Document("other", "Cats sleep for most of the day. They hunt mice at dusk.", "Cats"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index that is searched by words, since an embedder with random weights knows nothing."""
    with Index.create(tmp_path_factory.mktemp("quotes") / "index", dimension=2) as index:
        index.add(DOCUMENTS, np.ones((len(DOCUMENTS), 2), dtype=np.float32))
        yield index


def ask(index, question, **options):
    return answer_question(question, index, mode="lexical", **options)


@pytest.mark.parametrize(
    ("question", "expected", "headings"),
    [
        (
            "How do I resume a killed training?",
            "Kill it and run it again",
            ("Training", "Kills and restarts"),
        ),
        ("When does the cache expire?", "The cache expires after fifteen minutes.", ("Training", "Caching")),
        ("When was the Zorblatt bridge built?", "It was built in 1887", ()),
        ("缓存的过期时间是多少？", "过期时间设为十五分钟", ("会议纪要",)),
    ],
)
def test_the_nearest_quote_has_the_answer_and_its_place(index, question, expected, headings):
    found = ask(index, question, answered=0.0)
    assert found.kind == "quote"
    (first,) = found.quotes
    assert expected in first.text
    assert first.headings == headings
    text = next(d.text for d in DOCUMENTS if d.id == first.doc_id)
    assert text[first.start : first.end] == first.text
    assert first.probability == found.probability
    assert " ".join(first.text.split()) == found.text


def test_the_thresholds_decide_the_kind(index):
    question = "When does the cache expire?"
    known = ask(index, question, answered=0.0)
    assert 0 < known.probability < 1
    assert ask(index, question, answered=known.probability).kind == "quote"
    perhaps = ask(index, question, answered=1.0, perhaps=0.0)
    assert perhaps.kind == "perhaps"
    assert perhaps.text.startswith("The corpus may say:\n")
    assert 1 <= len(perhaps.quotes) <= 3
    assert [q.probability for q in perhaps.quotes] == sorted(
        (q.probability for q in perhaps.quotes), reverse=True
    )
    absent = ask(index, question, answered=1.0, perhaps=1.0)
    assert (absent.kind, absent.text, absent.quotes) == ("not_found", "The corpus does not say.", [])


@pytest.mark.parametrize(
    "question",
    [
        "Who won the football World Cup in 2010?",
        "What is the refund policy for broken chairs?",
        "谁赢了二零一零年的世界杯冠军？",
    ],
)
def test_what_no_document_says_is_not_answered(index, question):
    assert ask(index, question).kind == "not_found"


def test_questions_without_words_and_an_empty_index(index, tmp_path):
    assert ask(index, "?!").kind == "not_found"
    assert ask(index, "what is it").kind in ("not_found", "perhaps")
    with Index.create(tmp_path / "empty", dimension=2) as empty:
        assert ask(empty, "When?").kind == "not_found"
    with pytest.raises(InputError, match="The question is empty"):
        ask(index, " ")


@pytest.mark.parametrize(
    ("text", "question", "expected"),
    [
        ("The cache expires after fifteen minutes.", "When does the cache expire?", "fifteen"),
        ("```sh\nmake cache\nmake clean --all\n```", "Which command cleans all?", "make clean --all"),
        ("| part | size |\n|---|---|\n| cache | 4 GB |\n| index | 9 GB |", "How large is the index?", "9 GB"),
    ],
    ids=["one sentence", "code", "table"],
)  # fmt: skip
def test_a_corpus_of_one_sentence_of_code_or_of_a_table(tmp_path, text, question, expected):
    with Index.create(tmp_path / "index", dimension=2) as index:
        index.add(Document("a", text), [1.0, 0.0])
        found = ask(index, question, perhaps=0.0)
        assert expected in found.quotes[0].text
        other = ask(index, "Who wrote War and Peace?")
        assert other.kind == "not_found"
        assert other.probability <= other.present
        assert ask(index, "What is it?").kind == "not_found"
        assert ask(index, question * 60).kind in ("quote", "perhaps", "not_found")  # 1,600 characters


def test_rows_and_code_are_candidates_only_where_they_are_asked_for(index):
    hits = index.search("cache", 5, "lexical")

    def kinds(question):
        return {c.kind for c in find_candidates(question, hits, lambda doc_id: index.get(doc_id).text)}

    assert kinds("How is the cache?") == {"prose", "item"}
    assert kinds("Which command makes the cache?") == {"prose", "item", "row", "code"}
    only = [Hit("t", "t", "T", "| cache | 4 GB |", 0, 16, 1.0, None, 1.0, {})]
    assert [
        c.kind for c in find_candidates("How large is the cache?", only, lambda _: "| cache | 4 GB |")
    ] == ["row"]


def test_a_sentence_that_a_passage_cuts_is_a_candidate_of_its_document_once():
    text = "One sentence is here. Another one is cut by passages that overlap. A third one."
    cut = text.index("cut")
    hits = [
        Hit("a", "d", "", text[:cut], 0, cut, 1.0, None, 1.0, {}),
        Hit("b", "d", "", text[30:], 30, len(text), 0.5, None, 0.5, {}),
    ]
    found = find_candidates("What is cut?", hits, lambda _: text)
    assert sorted(c.text for c in found) == sorted(
        ["One sentence is here.", "Another one is cut by passages that overlap.", "A third one."]
    )
    assert [(c.rank, c.is_first) for c in found if c.text.startswith("One")] == [(0, True)]


def test_a_sentence_that_announces_a_list_is_quoted_with_it(index):
    found = ask(index, "What are the reasons to bypass the cache?", answered=0.0)
    assert found.quotes[0].text.split("\n")[0] == "Reasons to bypass it:"
    assert "The data change every second." in found.quotes[0].text


def test_features_are_finite_and_named(index):
    question = Question.of("When was the Zorblatt bridge built by Mira?", index.idf)
    hits = index.search(question.text, 5, "lexical")
    found = find_candidates(question.text, hits, lambda doc_id: index.get(doc_id).text)
    matrix = features(question, found)
    assert matrix.shape == (len(found), len(NAMES))
    assert np.isfinite(matrix).all()
    built = matrix[[c.text.startswith("It was built") for c in found]][0]
    values = dict(zip(NAMES, built, strict=True))
    assert values["has_time"] == 1
    assert values["lacks_type"] == 0
    assert 0 < values["cover"] < values["cover_passage"] == 1
    # "Zorblatt" and "bridge" are in the sentence before
    assert math.isclose(values["cover"] + values["cover_neighbours"], 1)


def feature(name, question, *sentences, title=""):
    """The feature of each sentence, as the only one of its document."""
    hits = [
        Hit(f"{i}", f"{i}", title, text, 0, len(text), 1.0, None, None, {})
        for i, text in enumerate(sentences)
    ]
    candidates = find_candidates(question, hits, lambda doc_id: sentences[int(doc_id)])
    matrix = features(Question.of(question, lambda keys: dict.fromkeys(keys, 1.0)), candidates)
    return matrix[:, NAMES.index(name)].tolist()


@pytest.mark.parametrize(
    ("question", "definition", "other"),
    [
        ("What is the Steering Council?", "The Steering Council of Python is a committee of five.",
         "In May the five members met the Steering Council."),
        ("What is IMAP?", "IMAP (Internet Message Access Protocol) reads mail.", "Port 143 is used by IMAP."),
        ("What does IMAP stand for?", "In mail, IMAP stands for a protocol.", "Port 143 of a server is used by IMAP."),
        ("什么是死锁？", "死锁是指两个线程互相等待。", "数据库会检测死锁。"),
        ("Redis 是什么？", "Redis 是一种内存数据库。", "缓存使用 Redis。"),
    ],
)  # fmt: skip
def test_a_definition_begins_with_what_is_defined(question, definition, other):
    assert feature("has_definition", question, definition, other) == [1, 0]
    assert feature("lacks_type", question, definition, other) == [0, 1]


def test_not_every_question_with_what_asks_for_a_definition():
    for question in (
        "What is the capital of Massachusetts?",
        "What was it in 2014?",
        "MySQL 的默认端口是什么？",
    ):
        assert answer_type(question) != "definition"


def test_names_and_numbers_of_the_question_that_stand_nowhere_near_are_missing():
    question = "Where did Mira Tandel work in 1887?"
    sentences = [
        "Mira Tandel worked in Quillby in 1887.",
        "Mira worked in Quillby in 1887.",
        "She worked in Quillby.",
    ]
    none, one, three = feature("names_missing", question, *sentences)
    assert none == 0 < one < three < 1
    assert feature("names_missing", question, *sentences, title="Mira Tandel")[1] == 0


def test_function_words_of_a_chinese_question_make_no_bigrams(index):
    assert Question.of("缓存的过期时间是多少？", index.idf).keys == {"缓存", "过期", "期时", "时间"}


def test_the_shipped_weights_are_of_known_features_and_another_embedder_gets_the_lexical_ones():
    content = json.loads(SHIPPED.read_text())["rankers"]
    assert {(r["language"], r["embedder"] is None) for r in content} == {
        (language, lexical) for language in ("en", "zh") for lexical in (True, False)
    }
    for language in ("en", "zh"):
        lexical = ranker_for(language, "unknown")
        assert lexical.embedder is None
        assert not lexical.weights.keys() & {"dense", "score"}
        assert lexical.weights.keys() <= set(NAMES)
        assert lexical.right.keys() | lexical.present.keys() <= set(CONFIDENCE_NAMES)
        fitted = next(r["embedder"] for r in content if r["language"] == language and r["embedder"])
        assert ranker_for(language, fitted).embedder == fitted


@pytest.mark.parametrize("content", ["", "{}", '{"rankers": [{"language": "en"}]}', '{"rankers": []}'])
def test_a_file_that_is_not_of_weights_is_named(tmp_path, content):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"weights\.json .*scripts/fit_answers\.py"):
        ranker_for("en", None, path)


@given(
    st.lists(
        st.sampled_from(["A cat. ", "猫。", "\n\n", "- item\n", "# H\n", "| a |\n", "```\n", "x ", "：\n"]),
        max_size=30,
    )
)
def test_quotes_are_the_documents_own_text(pieces):
    text = "".join(pieces)
    hits = [Hit("p", "d", "cat", text, 0, len(text), 1.0, None, 1.0, {})]
    found = quote(
        "A cat 猫 item?",
        hits,
        lambda _: text,
        lambda keys: dict.fromkeys(keys, 1.0),
        RANKER,
        Thresholds(0, 0),
    )
    for one in found.quotes:
        assert text[one.start : one.end] == one.text
        assert one.text.strip() == one.text != ""
        assert 0 <= one.probability <= 1


RANKER = Ranker(None, "en", 5, {"cover": 1.0}, {"bias": 0.1}, {"bias": 0.1}, Thresholds(0.5, 0.5), {})
