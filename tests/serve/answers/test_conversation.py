"""The rule by which a question of a conversation refers to earlier ones."""

import pytest

from index import Index
from serve.answers.answer import ground, prepare
from serve.answers.conversation import earlier, refers_back
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
        found = ground(prepare(asked, index, before="How long does a cat sleep?", **options))
        assert found.quotes[0].doc_id == "cats"
        assert "It hunts mice at dusk" in found.quotes[0].text
        other = ground(prepare("它的人口有多少？", index, before="北京在哪里？", **options))
        assert "两千多万人口" in other.quotes[0].text
