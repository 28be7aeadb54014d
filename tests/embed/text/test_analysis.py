"""Text analysis: the forms that users take for one word are one term; runs, joined words, symbols and stop words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed.text.analysis import index_terms, normalise, query_terms, stems, tokens, words
from gpt_core.common.stop_words import STOP_WORDS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ｆｕｌｌ　ｗｉｄｔｈ ﬁle", "full width file"),
        ("Café NAÏVE", "cafe naive"),
        ("Straße", "STRASSE"),
        ("βορράς", "ΒΟΡΡΑΣ"),
        ("ёлка Михаи́л", "елка Михаил"),
        ("Ọlọ́run", "Olorun"),
        ("كَتَبَ الطَّالِبُ", "كتب الطالب"),
        ("שָׁלוֹם", "שלום"),
        ("Ge\u00adsamt\u00adkonzept", "Gesamtkonzept"),
        ("zero\u200bwidth word\u2060joiner", "zerowidth wordjoiner"),
        ("می\u200cخواهم", "میخواهم"),
        ("don’t", "don't"),
        ("1,250,000", "1250000"),
        ("Maria's", "Maria"),
        ("the 1990s", "the 1990"),
    ],
)
def test_two_forms_of_a_word_are_one_term(one, other):
    assert index_terms(one) == index_terms(other)
    assert query_terms(one) == query_terms(other)


@pytest.mark.parametrize(
    ("one", "other"), [("がく", "かく"), ("हम दिल्ली", "हम हिन्दी"), ("C++", "C#"), ("3.8", "38")]
)
def test_different_words_are_different_terms(one, other):
    assert index_terms(one) != index_terms(other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The PEP 8 规范说明, 一 (and) more", "pep 8 规范 范说 说明 明 一 more"),
        ("แมว ລາວ ខ្មែរ မြန်မာ", "แม มว ว ລາ າວ ວ ខម មែ ែរ រ မြ ြန နမ မာ ာ"),
        ("한국어를 ひらがな", "한국 국어 어를 를 ひら らが がな な"),
        ("C++, C# or .NET; c++11", "c++ c c# c .net net c++ c 11"),
        (
            "snake_case CamelCase HTTPServer iPhone",
            "snake case camelcase camel case httpserver http server iphone phone",
        ),
        ("Python 3.8.1 of sys.path", "python 3 8 1 sys path"),
        ("# Title #1 a+b x++y foo#bar", "title 1 b x++ x y foo bar"),
        ("It didn't, can't and won't go", "go"),
    ],
)
def test_indexed_words(text, expected):
    assert index_terms(text).words == expected.split()


def test_stop_words_are_kept_apart():
    assert index_terms("Who didn't go with the Who?").stop_words == ["did", "not", "the", "who", "with"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Python 3.8 release", ["python", "3 8", "release"]),
        ("192.168.0.1", ["192 168 0 1"]),
        ("sys.path", ["sys path", "sys", "path"]),
        ("C++ or .NET", ["c++", ".net"]),
        ("snake_case CamelCase", ["snake case", "snake", "case", "camelcase", "camel case"]),
        ("state-of-the-art", ["state", "art"]),
        ("the U.S. and mRNA", ["u", "s", "mrna"]),
        ("学 大学生", ["学", "大学", "学生"]),
        ("to be or not to be", ["to", "be", "or", "not", "to", "be"]),
        ("!?", []),
    ],
)
def test_query_phrases(text, expected):
    assert [" ".join(phrase.words) for phrase in query_terms(text).phrases] == expected


def test_only_a_query_without_other_words_asks_for_stop_words():
    assert query_terms("The Who").only_stop_words
    assert not query_terms("The Who live").only_stop_words
    assert [phrase.is_prefix for phrase in query_terms("学 大学").phrases] == [True, False]


def test_words_for_near_duplicates():
    assert words("Ｔhe “Café”: 北京, don't!") == ["the", "cafe", "北", "京", "don", "t"]


def test_stems_are_those_of_the_index():
    assert stems(["running", "c++", "relational", "北京"]) == {
        "running": "run", "c++": "c++", "relational": "relat", "北京": "北京",
    }  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text("aA1.,+#_'-’北แ\u0301\u200b ", max_size=30))
def test_any_text(text):
    terms = index_terms(text)
    assert all(term and not term.isspace() for term in terms.words)
    assert not STOP_WORDS.intersection(terms.words)
    assert normalise(normalise(text)) == normalise(text)
    assert all(len(joined) >= 1 for joined in tokens(text))
    asked = {word for phrase in query_terms(text).phrases for word in phrase.words}
    assert asked <= {*terms.words, *terms.stop_words} | {
        atom.term for joined in tokens(text) for atom in joined
    }
