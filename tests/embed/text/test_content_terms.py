"""Content words: stems, numbers, names, bigrams."""

from embed.text.content_terms import content_terms


def test_stems_numbers_names_and_bigrams():
    (terms,) = content_terms(["The Cats of Paris were running 1,250 miles in 19th-century 北京大学 and x1"])
    keys = [t.key for t in terms]
    assert keys == ["cat", "pari", "run", "1250", "mile", "19", "centuri", "北京", "京大", "大学", "x1"]
    assert [t.key for t in terms if t.is_number] == ["1250", "19"]
    assert [t.key for t in terms if t.is_name] == ["cat", "pari"]
