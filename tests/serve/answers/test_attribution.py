import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import Document, Hit
from index.reading.passages import split
from serve.answers.attribution import SUPPORT_THRESHOLD, attribute

TEXT = (
    "Beyoncé rose to fame in the late 1990s. 🎤 She was lead singer of a group from Houston, Texas. "
    "The group was managed by her father, Mathew Knowles. Its debut album came out in June 2003 and sold "
    "1,250,000 copies. Critics praised the songs. They were written in Paris by the singer herself."
)


def hit(text, title="", start=0, name="p"):
    return Hit(name, f"doc-{name}", title, text, start, start + len(text), 0.0, None, None, {})


def one(answer, question="What is known about it?", hits=None):
    """The attribution of the only sentence of `answer`."""
    (sentence,) = attribute(answer, question, [hit(TEXT, "Beyoncé")] if hits is None else hits)
    return sentence


def test_a_paraphrase_is_supported_by_its_sentence():
    sentence = one("Her father Mathew Knowles was managing the group.", "Who managed the group?")
    assert sentence.supported
    assert sentence.citation.text == "The group was managed by her father, Mathew Knowles."
    assert TEXT[sentence.citation.start : sentence.citation.end] == sentence.citation.text


def test_two_neighbouring_sentences_can_support_together():
    sentence = one(
        "Critics praised the songs, written by the singer in Paris.", "What did critics say of the songs?"
    )
    assert sentence.citation.text.startswith("Critics praised")
    assert sentence.citation.text.endswith("singer herself.")
    assert sentence.score == pytest.approx(0.85)  # a pair counts less than one sentence


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        ("When did the debut album come out?", "It came out in June 2003.", "It came out in June 2004."),
        ("How many copies did it sell?", "It sold 1250000 copies.", "It sold 1,350,000 copies."),
        ("Who managed the group?", "It was managed by Mathew Knowles.", "It was managed by Simon Cowell."),
        ("Where is the group from?", "The group is from Houston, Texas.", "The group is from Dallas, Texas."),
    ],
)
def test_numbers_and_names_must_match(question, right, wrong):
    assert one(right, question).supported
    assert not one(wrong, question).supported
    assert one(wrong, question).citation is None


def test_a_long_sentence_that_differs_in_a_number_or_name_alone_is_not_supported():
    source = "The group from Houston sold 1,250,000 copies of its debut album in the shops of Paris and Rome that June."
    question = "What did the group sell?"

    def supported(answer):
        return one(answer, question, [hit(f"{source} Critics praised it. They danced. It rained.")]).supported

    assert supported(source)
    for old, new in (("1,250,000", "1,250,001"), ("Houston", "Dallas"), ("Rome", "Oslo"), ("June", "July")):
        assert not supported(source.replace(old, new)), new


def test_the_first_word_can_be_a_name():
    hits = [
        hit(
            "Knowles managed the group of singers for twelve years in Houston. Critics praised it. They danced."
        )
    ]
    question = "Who managed the group?"
    assert one("Knowles managed the group of singers for twelve years in Houston.", question, hits).supported
    assert not one(
        "Cowell managed the group of singers for twelve years in Houston.", question, hits
    ).supported
    assert one(
        "Overall Knowles managed the group of singers for twelve years in Houston.", question, hits
    ).supported


def test_seven_elevenths_of_the_words_are_enough_and_five_eighths_are_not():
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda"]
    hits = [hit(f"Red {' '.join(words[:7])}. Cats sleep. Dogs bark. Cows graze.")]
    enough = one(f"red {' '.join(words)}", "red?", hits)
    assert enough.score == pytest.approx(7 / 11)
    assert enough.supported
    too_few = one(f"red {' '.join([*words[:5], *words[8:11]])}", "red?", hits)
    assert too_few.score == pytest.approx(5 / 8)
    assert not too_few.supported


def test_a_repeated_question_is_no_evidence():
    question = "When did the debut album of the group from Houston come out?"
    assert one("The debut album of the group from Houston did come out.", question).score == 0
    assert one("Yes.", question).score == 0


def test_a_short_answer_is_scored_with_its_question():
    # "Paris" and "Texas" are both in the passage; only one of them answers
    question = "Where were the songs written by the singer herself?"
    assert one("In Paris.", question).supported
    assert not one("In Texas.", question).supported


def test_the_title_counts_as_part_of_every_sentence():
    answer, question = "Beyoncé was lead singer of a group.", "Who was a lead singer?"
    text = "She was lead singer of a group from Houston."
    assert one(answer, question, [hit(text, title="Beyoncé")]).supported
    assert not one(answer, question, [hit(text, title="Shakira")]).supported


def test_a_title_alone_supports_nothing():
    hits = [
        hit("Abstract\n========\n\nIt is about packages.", title="PEP 778 – Supporting Symlinks in Wheels")
    ]
    assert one("PEP 778 – Supporting Symlinks in Wheels.", "What is a wheel file?", hits).score == 0


def test_a_repeated_title_is_no_evidence():
    text = "This proposes that symbols matching the type name are added to the types module. Names are long."
    source = hit(text, title="PEP 294 – Type Names in the types Module")
    assert not one(
        "PEP 294 – Type Names in the types Module", "What is the capital of France?", [source]
    ).supported


def test_the_better_passage_is_cited_whatever_its_rank():
    near, right = (
        hit("Cats are animals. Cats eat.", name="a"),
        hit("A cat sleeps for sixteen hours a day.", name="b"),
    )
    sentence = one("A cat sleeps sixteen hours.", "How long does a cat sleep?", [near, right])
    assert sentence.citation.passage_id == "b"


def test_chinese():
    text = "北京是中国的首都。它有两千多万人口，长城在它的北边。上海是最大的城市。"
    hits = [hit(text, "中国")]
    right = one("北京有两千多万人口。", "北京有多少人口？", hits)
    assert right.supported
    # "它" (it) refers to the first sentence
    assert right.citation.text == "北京是中国的首都。它有两千多万人口，长城在它的北边。"
    assert not one("北京有五百座图书馆。", "北京有多少图书馆？", hits).supported
    mixed = attribute("上海是最大的城市。广州盛产荔枝。", "哪个城市最大？", hits)
    assert [s.supported for s in mixed] == [True, False]


def test_empty_answers_and_empty_sources():
    assert attribute("", "Why?", [hit(TEXT)]) == []
    (sentence,) = attribute("Paris.", "Where?", [])
    assert (sentence.supported, sentence.score, sentence.citation) == (False, 0.0, None)
    # a title alone cannot be cited
    assert not one("Paris.", "Where?", [hit("", title="Paris in spring")]).supported


def test_a_corpus_of_one_sentence_can_support_an_answer():
    assert one("The cat sleeps.", "What does the cat do?", [hit("A cat sleeps all day.")]).supported


def test_score_is_the_formula():
    hits = [hit("Red green blue. Red yellow. Red. Red.")]
    sentence = one("red green purple", "red?", hits)
    n = 4
    weight = math.log(1 + (n - 3 + 0.5) / 3.5)  # MIN_DF: both words count as if in three sentences
    # "red" is in the question, the answer and the source
    assert sentence.score == pytest.approx(weight / (2 * weight))
    # a fragment: two of the question's three words are in its source
    far = one("green purple", "red blue violet?", hits)
    red = math.log(1 + 0.5 / 4.5)
    assert far.score == pytest.approx(1 / 2 * (1 + (red + weight) / (red + 2 * weight)) / 2)


def test_a_fragment_has_three_new_words_at_most():
    # The question's words are in another sentence of the passage, which is enough for a longer answer only.
    hits = [hit("Alpha beta gamma delta. Rain fell. The ship sank.")]
    fragment, sentence = (
        one(text, "Which ship sank?", hits) for text in ("Alpha beta gamma.", "Alpha beta gamma delta.")
    )
    assert (fragment.score, sentence.score) == (0.5, 1.0)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from(["Cats sleep.", "北京很大。", "🐈🐈 run", "v1.2 is out!", "\n\n", "See e.g. this."]),
        max_size=30,
    ),
    st.integers(16, 40),
)
def test_citations_are_the_documents_own_text(tokenizer, pieces, max_tokens):
    document = Document("d", " ".join(pieces), "Title")
    hits = [
        Hit(p.id, p.doc_id, document.title, p.text, p.start, p.end, 0.0, None, None, {})
        for p in split(document, tokenizer, max_tokens, 8)
    ]
    answer = "Cats sleep. 北京很大。 v1.2 is out! Nothing of this kind exists."
    attributed = attribute(answer, "What?", hits)
    assert "".join(s.text for s in attributed).replace(" ", "") == answer.replace(" ", "")
    for sentence in attributed:
        assert answer[sentence.start : sentence.end] == sentence.text
        assert 0 <= sentence.score <= 1
        assert sentence.supported == (sentence.score >= SUPPORT_THRESHOLD) == (sentence.citation is not None)
        if citation := sentence.citation:
            assert document.text[citation.start : citation.end] == citation.text
    assert not attributed[-1].supported
