"""Words as attribution compares them: stems, numbers, names, bigrams, function words."""

from embed.text.content_terms import content_terms


def test_stems_numbers_names_and_bigrams():
    (terms,) = content_terms(["The Cats of Paris were running 1,250 miles in 19th-century 北京大学 and x1"])
    keys = [t.key for t in terms if not t.is_function]
    assert keys == ["cat", "pari", "run", "1250", "mile", "19", "centuri", "北京", "京大", "大学", "x1"]
    assert [t.word for t in terms if t.is_function] == ["The", "of", "were", "in", "and"]
    assert [t.key for t in terms if t.is_number] == ["1250", "19"]
    assert [t.key for t in terms if t.is_name] == ["cat", "pari"]


def test_contractions_and_symbols_are_written_out():
    texts = [
        "It didn't, can’t and won't rise 5% per cent to $3",
        "It did not, cannot and will not: percent dollar",
    ]
    contracted, whole = ([t.key for t in terms] for terms in content_terms(texts))
    assert contracted == [
        *("it", "did", "not", "can", "not", "and", "will", "not", "rise", "5", "percent", "percent", "to"),
        *("dollar", "3"),
    ]
    assert whole == ["it", "did", "not", "can", "not", "and", "will", "not", "percent", "dollar"]
