"""The rule by which a question of a conversation refers to earlier ones."""

import pytest

from gpt_core.common.errors import InputError
from index import Index
from serve.answers.answer import ground, prepare
from serve.answers.conversation import MOST_QUESTIONS, earlier, questions_in, refers_back
from serve.answers.question import WEIGHT_BEFORE, Question
from tests.serve.conftest import DOCUMENTS

BACK = [
    "Why?", "How long?", "In 2019?", "How many arches?", "When was it built?", "Who paid for these?", "And its color?",
    "And who paid the engineers?", "What about Munich and Berlin?", "Why did that happen to engineers?",
    "How many people live there?", "So who paid the engineers?", "WHEN WAS IT BUILT",
    "为什么？", "什么时候建成的？", "哪一年建成？", "人口多少？", "它的人口是多少？", "那里的人口是多少？",
    "这座桥是谁修建的？", "這座橋是誰修建的？",
    "其中有多少是现金支付的？", "该公司的总部在哪里？", "上海和广州呢？", "另外日志保留多久？", "2019年呢？", "哪些？",
]  # fmt: skip
ALONE = [
    "Who built the Zorblatt bridge?", "Where is Beijing?", "Is there a limit on body size?",
    "How do I resume a killed training?", "Which paper said that engineers build bridges?", "What does GDPR mean?",
    "Sand and soil prices?", "Who wrote Andorra's constitution?",
    "北京有多少人口？", "缓存什么时候过期？", "其他日志保留多久？", "应该怎么重启服务器？", "因此要重启什么服务？",
    "Redis 是什么？",
    "日志保留多少天？", "谁发明了吉他和提琴？",
    "日本の首都はどこですか？",
]  # fmt: skip


def any_length(text):
    return True


@pytest.mark.parametrize("question", BACK)
def test_a_question_with_a_pronoun_or_few_words_refers_back(question):
    assert refers_back(question)


@pytest.mark.parametrize("question", ALONE)
def test_a_question_with_words_of_its_own_stands_alone(question):
    assert not refers_back(question)


def test_earlier_questions_go_back_to_the_first_that_stands_alone():
    questions = ["Where is Beijing?", "Who built the Zorblatt bridge? ", "When?", "And why?"]
    assert earlier(questions[:1], any_length) == ""
    assert earlier(questions[:2], any_length) == ""
    assert earlier(questions[:3], any_length) == "Who built the Zorblatt bridge?"
    assert earlier(questions, any_length) == "Who built the Zorblatt bridge? When?"
    assert earlier(["Why?", "How?"], any_length) == "Why?"


def test_earlier_questions_that_do_not_fit_are_left_out():
    questions = ["Who built the Zorblatt bridge?", "When?", "And why?"]
    assert earlier(questions, lambda text: len(text) <= len("When? And why?")) == "When?"
    assert earlier(questions, lambda text: False) == ""


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ("Who built it? When did it open?", ["Who built it?", "When did it open?"]),
        ("Who built the bridge? When?", ["Who built the bridge?", "When?"]),
        ("谁修建了大桥？什么时候建成？", ["谁修建了大桥？", "什么时候建成？"]),
        ("I am new here. Who built it? I need it today.", ["I am new here. Who built it? I need it today."]),
        ("The bridge is old. Right? Who built it?", ["The bridge is old. Right?", "Who built it?"]),
        ("What is http://host/v1?key=x for?", ["What is http://host/v1?key=x for?"]),
        ("Who said “Why?” and when did cats?", ["Who said “Why?”", "and when did cats?"]),
        ("Opening hours", ["Opening hours"]),
        ("", [""]),
    ],
)
def test_a_text_is_split_into_its_questions(text, questions):
    assert questions_in(text) == questions


def test_a_text_of_many_questions_is_one():
    asked = "Who built it? " * MOST_QUESTIONS
    assert len(questions_in(asked)) == MOST_QUESTIONS
    assert questions_in(asked + "When?") == [asked + "When?"]


def test_words_of_earlier_questions_count_less_than_the_questions_own():
    def idf(keys):
        return dict.fromkeys(keys, 6.0)

    asked = Question.of("How many arches does the bridge have?", idf, "When was the Zorblatt bridge built?")
    assert asked.kind == "number"  # not time
    own, earlier_ones = ["mani", "arch", "bridg"], ["zorblatt", "built"]
    assert asked.weights == dict.fromkeys(own, 1.0) | dict.fromkeys(earlier_ones, WEIGHT_BEFORE)
    assert Question.of("Why?", idf, "Who built it?").weights == {"built": 1.0}


def test_a_follow_up_question_finds_what_the_earlier_one_names(tmp_path, encoder):
    with Index.create(tmp_path / "index", encoder) as index:
        index.add(DOCUMENTS)
        options = {"mode": "lexical", "perhaps": 0.0}
        asked = "What do they hunt?"
        found = ground(prepare(asked, index, history=["How long does a cat sleep?"], **options))
        assert found.quotes[0].doc_id == "cats"
        assert "It hunts mice at dusk" in found.quotes[0].text
        other = ground(prepare("它的人口有多少？", index, history=["北京在哪里？"], **options))
        assert "两千多万人口" in other.quotes[0].text
        with pytest.raises(InputError, match="question is empty"):
            prepare(" ", index, history=["How long does a cat sleep?"])


def test_each_question_of_a_text_is_answered(tmp_path, encoder):
    with Index.create(tmp_path / "index", encoder) as index:
        index.add(DOCUMENTS)
        options = {"mode": "lexical", "answered": 0.0}
        found = ground(prepare("How long does a cat sleep? What do they hunt?", index, **options))
        alone = [
            ground(prepare(text, index, history=history, **options))
            for text, history in (
                ("How long does a cat sleep?", []),
                ("What do they hunt?", ["How long does a cat sleep?"]),
            )
        ]
        assert found.kind == "quote"
        assert found.quotes == list(dict.fromkeys(quote for one in alone for quote in one.quotes))
        assert found.probability == min(one.probability for one in alone)
        assert {hit.passage_id for hit in found.hits} == {h.passage_id for one in alone for h in one.hits}
        half = ground(prepare("How long does a cat sleep? 谁赢得了世界杯冠军？", index, mode="lexical",
                              answered=alone[0].probability))  # fmt: skip
        assert half.kind == "quote"
        assert half.quotes == alone[0].quotes
        assert half.unanswered == ["谁赢得了世界杯冠军？"]
        assert half.text.splitlines()[-1].endswith("谁赢得了世界杯冠军？")
