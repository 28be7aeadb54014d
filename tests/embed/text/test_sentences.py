import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed.text.sentences import split_sentences


def sentences(text):
    return [text[start:end] for start, end in split_sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. J. K. Smith met Mr. Wu. They left.", ["Dr. J. K. Smith met Mr. Wu.", "They left."]),
        (
            "It costs 3.14 dollars. Call sys.exit in v1.2 now.",
            ["It costs 3.14 dollars.", "Call sys.exit in v1.2 now."],
        ),
        ("See Fig. 3, i.e. this one. No. 5 is alive.", ["See Fig. 3, i.e. this one.", "No. 5 is alive."]),
        ("Benedict (d. 547) and Bede (c. 672–735). B.", ["Benedict (d. 547) and Bede (c. 672–735).", "B."]),
        ("The answer is no. Then we go.", ["The answer is no.", "Then we go."]),
        ('He said "Yes." Then (really!) he left...', ['He said "Yes."', "Then (really!) he left..."]),
        ("“Why?” she asked. Use `x.y`. End.", ["“Why?” she asked.", "Use `x.y`.", "End."]),
        (
            "圆周率约为３．１４．它是无理数．证明从略",  # the full stop of Chinese mathematical texts
            ["圆周率约为３．１４．", "它是无理数．", "证明从略"],
        ),
        (
            "北京是中国的首都。它很大！真的吗？“是的。”他说",
            ["北京是中国的首都。", "它很大！", "真的吗？", "“是的。”", "他说"],
        ),
        ("हम दिल्ली में हैं। आप कहाँ हैं? यह अच्छा है॥", ["हम दिल्ली में हैं।", "आप कहाँ हैं?", "यह अच्छा है॥"]),
        ("أين القطة؟ هي نائمة. نعم!", ["أين القطة؟", "هي نائمة.", "نعم!"]),
        ("یہ بلی ہے۔ «وہ کہاں ہے؟» وہ سوتی ہے۔", ["یہ بلی ہے۔", "«وہ کہاں ہے؟»", "وہ سوتی ہے۔"]),
        ("ကြောင်အိပ်သည်။သူအိပ်သည်။", ["ကြောင်အိပ်သည်။", "သူအိပ်သည်။"]),
        ("ឆ្មាដេក។ ឆ្កែព្រុស៕", ["ឆ្មាដេក។", "ឆ្កែព្រុស៕"]),
        ("ድመት ተኛች። ማን ነው፧ ውሻ", ["ድመት ተኛች።", "ማን ነው፧", "ውሻ"]),
        ("1. Install foo.\n2. Run bar\n- baz", ["1. Install foo.", "2. Run bar", "- baz"]),
        (
            "Heading\n=======\n\nA paragraph\nin two lines. More.",
            ["Heading\n=======", "A paragraph\nin two lines.", "More."],
        ),
        (" \n ", []),
        ("", []),
    ],
)
def test_examples(text, expected):
    assert sentences(text) == expected


@given(st.text(alphabet='aA1 .!?。！\n-()"”…\u3000🐈', max_size=60))
def test_every_character_but_white_space_is_in_exactly_one_sentence(text):
    end = 0
    for start, stop in split_sentences(text):
        assert end <= start < stop
        assert not text[end:start].strip()
        assert text[start:stop] == text[start:stop].strip()
        end = stop
    assert not text[end:].strip()
