"""Sentences that share nearly all words with a source and contradict it."""

import pytest

from embed.text.content_terms import content_terms
from index import Hit
from serve.answers import contradiction, contradiction_zh
from serve.answers.attribution import attribute
from serve.answers.contradiction import Statement
from serve.answers.quantities import quantities

SOURCE = (
    "The drug is safe for children under medical supervision. Deploys happen on Tuesday at 14:00 in Geneva. "
    "Revenue was 5 million euros in 2023. Version 3.12 removed distutils from the library. Maria is the on-call "
    "engineer of the team in Oslo. Exports increased by 12% before the war. The cache does not keep entries for a day. "
    "Germany won the final of the cup against Spain in July 2010 in Johannesburg. The bridge is 120 km long and "
    "carries seven trains an hour. It is legal to fish from the quay. The plant opened in 1914 and closed in 1918. "
    "He served not only in Rome but also in Paris. In no way did the council approve the plan. See No. 7 for the rules."
)
CHINESE = (
    "会议在星期二举行。缓存保留二十四小时。该市有2400万人口，面积6340平方公里。票价高于五百元。"
    "他在战争之前离开上海。这种鸟不能飞行。"
)


def supported(answer, question, source=SOURCE):
    hits = [Hit("p", "d", "", source, 0, len(source), 0.0, None, None, {})]
    (sentence,) = attribute(answer, question, hits)
    return sentence.supported


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        (
            "What is known about the drug?",
            "The drug is safe for children under medical supervision.",
            [
                "The drug is not safe for children under medical supervision.",
                "The drug isn't safe for children under medical supervision.",
                "The drug isn’t safe for children under medical supervision.",
                "The drug is in no way safe for children under medical supervision.",
                "The drug is far from safe for children under medical supervision.",
                "The drug is unsafe for children under medical supervision.",
                "The drug is safe for children without medical supervision.",
            ],
        ),
        (
            "When do deploys happen?",
            "Deploys happen on Tuesday at 14:00 in Geneva.",
            [
                "Deploys do not happen on Tuesday at 14:00 in Geneva.",
                "Deploys never happen on Tuesday at 14:00 in Geneva.",
            ],
        ),
        (
            "What did the version remove?",
            "Version 3.12 removed distutils from the library.",
            [
                "Version 3.12 didn't remove distutils from the library.",
                "Version 3.11 removed distutils from the library.",
            ],
        ),
        (
            "Who is the engineer of the team?",
            "Maria is the on-call engineer of the team in Oslo.",
            [
                "Maria is no longer the on-call engineer of the team in Oslo.",
                "Zorblax is the on-call engineer of the team in Oslo.",
            ],
        ),
        (
            "What does the cache keep?",
            "The cache does not keep entries for a day.",
            ["The cache keeps entries for a day.", "The cache does keep entries for a day."],
        ),
        (
            "How high was revenue?",
            "Revenue was 5 million euros in 2023.",
            [
                "Revenue was below 5 million euros in 2023.",
                "Revenue was over 5 million euros in 2023.",
                "Revenue was 5 billion euros in 2023.",
                "Revenue was 5 million dollars in 2023.",
                "Revenue was 5 euros in 2023.",
                "Revenue was $5 million in 2023.",
                "Revenue was 5 million euros before 2023.",
            ],
        ),
        ("How high was revenue?", "Revenue was €5,000,000 in 2023.", ["Revenue was €5,000 in 2023."]),
        (
            "What happened to exports?",
            "Exports increased by 12 percent before the war.",
            [
                "Exports decreased by 12% before the war.",
                "Exports increased by 12% after the war.",
                "Exports increased by 12 km before the war.",
            ],
        ),
        (
            "How long is the bridge?",
            "The bridge is 120 kilometres long and carries seven trains an hour.",
            [
                "The bridge is 120 miles long and carries seven trains an hour.",
                "The bridge is 120 km short and carries seven trains an hour.",
                "The bridge is 120 km long and carries eight trains an hour.",
                "The bridge is 120 km long and carries seventy trains an hour.",
            ],
        ),
        (
            "How many trains does the bridge carry?",
            "The bridge is 120 km long and carries 7 trains an hour.",
            [],
        ),
        (
            "Who won the final of the cup?",
            "Germany won the final of the cup against Spain in July 2010 in Johannesburg.",
            [
                "Spain won the final of the cup against Germany in July 2010 in Johannesburg.",
                "Zorblax won the final of the cup against Spain in July 2010 in Johannesburg.",
                "Germany won the final of the cup against Spain in July 2014 in Johannesburg.",
                "Germany lost the final of the cup against Spain in July 2010 in Johannesburg.",
            ],
        ),
        (
            "When did the plant open?",
            "The plant opened in 1914 and closed in 1918.",
            ["The plant opened in 1918 and closed in 1914."],
        ),
        (
            "May one fish from the quay?",
            "It is legal to fish from the quay.",
            ["It is illegal to fish from the quay."],
        ),
        ("Where has he served?", "He served in Rome.", ["He did not serve in Rome."]),
        (
            "What did the council do about the plan?",
            "In no way did the council approve the plan.",
            ["The council did approve the plan."],
        ),
        ("Where are the rules?", "See 7 for the rules.", []),
    ],
)
def test_an_opposite_is_not_supported_and_a_paraphrase_is(question, right, wrong):
    assert supported(right, question)
    assert [sentence for sentence in wrong if supported(sentence, question)] == []


@pytest.mark.parametrize(
    ("question", "right", "wrong"),
    [
        ("会议在哪天？", "会议在星期二举行。", ["会议不在星期二举行。", "会议没在星期二举行。"]),
        (
            "缓存保留多久？",
            "缓存保留二十四小时。",
            ["缓存不保留二十四小时。", "缓存保留二十八小时。", "缓存保留二十四分钟。"],
        ),
        (
            "该市有多少人口？",
            "该市有2,400万人口，面积6340平方公里。",
            [
                "该市有2400亿人口，面积6340平方公里。",
                "该市有2400万人口，面积6340公顷。",
                "该市没有2400万人口，面积6340平方公里。",
            ],
        ),
        ("票价是多少？", "票价高于五百元。", ["票价低于五百元。", "票价高于五百美元。", "票价高于六百元。"]),
        ("他在什么时候离开上海？", "他在战争之前离开上海。", ["他在战争之后离开上海。"]),
        ("这种鸟怎么样？", "这种鸟不能飞行。", ["这种鸟能飞行。"]),
    ],
)
def test_an_opposite_in_chinese_is_not_supported(question, right, wrong):
    assert supported(right, question, CHINESE)
    assert [sentence for sentence in wrong if supported(sentence, question, CHINESE)] == []


def test_passive_voice_and_enumerations_are_no_exchange():
    question = "What happened at Waterloo?"
    source = (
        "Wellington defeated Napoleon at Waterloo in Belgium. Envoys of France, Spain and Portugal met there."
    )
    assert supported("Napoleon was defeated by Wellington at Waterloo in Belgium.", question, source)
    assert not supported("Napoleon defeated Wellington at Waterloo in Belgium.", question, source)
    assert supported("Envoys of Portugal and France met there.", "Who met there, envoys of whom?", source)


def test_a_word_of_the_question_needs_no_counterpart():
    source = "Voltaire and Rousseau led the philosophic movement of Paris until 1780."
    question = "Who were the two leaders of the philosophic movement before which year?"
    assert supported(
        "The two leaders of the philosophic movement were Voltaire and Rousseau.", question, source
    )
    assert supported(
        "The philosophic movement of Paris was led by Voltaire before 1780 year.", question, source
    )
    assert not supported(
        "The philosophic movement of Paris was led by Voltaire before 1781.", question, source
    )


def test_both_sides_of_a_pair_in_other_forms_are_no_opposites():
    texts = [
        "The eastern and western parts were divided.",
        "East and west were divided.",
        "East was divided.",
    ]
    both, other_forms, one = (
        Statement(text, terms) for text, terms in zip(texts, content_terms(texts), strict=True)
    )
    assert not contradiction.conflicts(other_forms, both)
    assert contradiction.conflicts(one, both)


def test_the_neighbour_of_the_contradicted_sentence_does_not_hide_it():
    source = "The stadium was designed by Archibald Leitch with a new roof. The north bank was not restored."
    assert not supported(
        "The stadium was not designed by Archibald Leitch with a new roof.",
        "Who designed the stadium?",
        source,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 million euros", [("5000000", "euro", "")]),
        ("over $1.25 billion", [("1250000000", "dollar", ">")]),
        ("more than the 12% and at most twenty-one km", [("12", "percent", ">"), ("21", "kilometer", "<")]),
        ("three hundred thousand square miles", [("300000", "square mile", "")]),
        (
            "version 3.12.1 of 1,000 °F after 1999",
            [("3.12.1", "", ""), ("1000", "fahrenheit", ""), ("1999", "", "a")],
        ),
        ("millions of seconds, a million seconds", [("millions", "", ""), ("1000000", "seconds", "")]),
        ("1.2.3 million", [("1.2.3", "", ""), ("1000000", "", "")]),
    ],
)
def test_numbers_with_scale_unit_and_bound(text, expected):
    (terms,) = content_terms([text])
    assert [tuple(quantity)[:3] for quantity in quantities(terms)] == expected


def test_a_text_does_not_contradict_itself():
    texts = [
        *SOURCE.split(". "),
        *CHINESE.split("。"),
        SOURCE,
        CHINESE,
        "Not without a doubt. No, 不得不说 no 5",
    ]
    for text, terms in zip(texts, content_terms(texts), strict=True):
        statement = Statement(text, terms)
        for check in (contradiction, contradiction_zh):
            assert not check.missing(statement, Statement("", []), [statement])
            assert not check.conflicts(statement, statement)
