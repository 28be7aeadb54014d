"""Contradictions in Chinese: the negators, numbers with scale and unit, and opposites of `serve.answers.contradiction`.

Chinese is written without spaces, so these checks look at the characters of a sentence, not at its words. They are for
sentences with Chinese characters.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import regex

from serve.answers.contradiction import Statement, opposite

# A negator with the one or two characters that it negates
NEGATED = regex.compile(r"(?:[不沒没未非无無]有?)+(\p{Han}{1,2})")
# Words with these characters that negate nothing
NOT_NEGATORS = re.compile(
    "不得不|不仅|不僅|不但|不只|不过|不過|不断|不斷|不少|不久|不同|不论|不論|不管|不如|不列颠|不列顛|不丹|"
    "差不多|非常|非洲|除非|未来|未來|未必|无论|無論|无线|無線|无数|無數|无穷|无限|無限|南无|没落|沒落|没收|"
    "沒收|淹没|沉没|出没|[东西南北中]非"
)
_NUMERALS = "〇零一二两兩三四五六七八九十百千"
# Digits with their scale, or a number in characters
NUMBER = re.compile(
    rf"(?P<digits>\d+(?:\.\d+)?)\s*[十百千]?[万萬亿億]*多?|(?P<numerals>[{_NUMERALS}]+多?[万萬亿億]*)"
)
_UNITS = (
    "公里 千米|米|厘米|毫米|英里|英尺|海里|美元|欧元 歐元|日元 日圆|英镑 英鎊|港元 港币|元 人民币|卢布|法郎|"
    "公斤 千克|克|吨 噸|磅|斤|平方公里|平方米|公顷|亩|年|月|个月|周|日 天|小时 小時|分钟 分鐘|秒|世纪 世紀|"
    "人 名 位|户|座|次|部|所|集|艘|岁 歲|家|种|个 個|度|摄氏度|华氏度|% 百分点|届|代|层|条|张|场|章|倍"
)
UNITS = {name: names.split()[0] for names in _UNITS.split("|") for name in names.split()}
UNIT = re.compile("|".join(sorted(map(re.escape, UNITS), key=len, reverse=True)))
_OPPOSITES = (
    "高于/低于|大于/小于|多于/少于|超过 超過/不足 不到|增加 增长 增長/减少 減少 下降 下跌|"
    "上升 上涨/下降 下跌|提高/降低|扩大/缩小|最大/最小|最高/最低|最多/最少|最长/最短|最早/最晚|"
    "较大 更大/较小 更小|较高 更高/较低 更低|较多 更多/较少 更少|以上/以下|以内/以外|之上/之下|"
    "之前 以前/之后 以后 之後 以後|年前/年后 年後|开始 開始/结束 結束|首次/末次 最后一次|"
    "早期 初期/晚期 末期 后期|最初/最后 最後|第一/最后|首先/最后|上午/下午|前任/继任 后任|首任/末任|"
    "前者/后者|常见 普遍/罕见 少见|主要/次要|著名/无名|成功 胜利/失败|胜/败|优点/缺点|支持/反对|允许/禁止|"
    "接受/拒绝|公开/秘密|内部/外部|积极/消极|正面/负面|南部 南方/北部 北方|东部 东方/西部 西方|进口/出口|"
    "买/卖"
)
OPPOSITES = [[side.split() for side in pair.split("/")] for pair in _OPPOSITES.split("|")]


class Quantity(NamedTuple):
    """A number with its scale, `value`, and the unit or measure word that follows it, or ""."""

    value: str
    unit: str


def quantities(text: str) -> list[Quantity]:
    """The numbers of a text in digits or in characters. "一" is none: before a measure word it only means "a"."""
    found = []
    for match in NUMBER.finditer(re.sub(r"(?<=\d),(?=\d{3})", "", _normal(text))):
        unit = UNIT.match(match.string, match.end())
        is_ordinal = match.string.startswith("第", match.start() - 1)
        if match["digits"] or len(match[0]) > 1 or is_ordinal or (unit and match[0] != "一"):
            found.append(Quantity(re.sub(r"[\s多]", "", match[0]), UNITS[unit[0]] if unit else ""))
    return found


def missing(answer: Statement, question: Statement, source: Sequence[Statement]) -> bool:
    """Whether the answer has a number, a number's unit, or a negation that the source has not.

    The numbers of the question need not be in the source.
    """
    held = [q for sentence in source for q in quantities(sentence.text)]
    asked = {q.value for q in quantities(question.text)}
    for value, unit in quantities(answer.text):
        units = {q.unit for q in held if q.value == value}
        if not units and value not in asked:
            return True
        if units and unit and not units & {unit, ""}:
            return True
    return bool(_negated(answer.text)) and not any(_negated(sentence.text) for sentence in source)


def conflicts(answer: Statement, source: Statement) -> bool:
    """Whether a sentence says the opposite of a word of the answer."""
    answer_text, source_text = _normal(answer.text), _normal(source.text)
    ours, theirs = _negated(answer_text), _negated(source_text)
    for word in ours | theirs:
        asserted = answer_text.count(word) - ours[word]
        source_asserted = source_text.count(word) - theirs[word]
        if opposite((asserted, ours[word]), (source_asserted, theirs[word])):
            return True
    for sides in OPPOSITES:
        more, less = (sum(answer_text.count(w) - source_text.count(w) for w in words) for words in sides)
        if more * less < 0:
            return True
    return False


def _negated(text: str) -> Counter[str]:
    """The one or two characters after each negator."""
    text = NOT_NEGATORS.sub(lambda match: " " * len(match[0]), _normal(text))
    return Counter(match[1] for match in NEGATED.finditer(text))


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text)
