"""Wrong sentences for the evaluation of attribution: a sentence of a source with one thing changed.

`ENGLISH` and `CHINESE` map each kind of change to its rule: a function of a sentence, of names that do not occur in the
sources, and of a random draw. A rule returns the changed sentence, or None if there is nothing that it could change.

The lists were written for the evaluation. They share their common words with the lists that attribution checks, and
have others that it does not know: rarer negations, opposites and units.
"""

import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

Rule = Callable[[str, Sequence[str], random.Random], str | None]

AUXILIARY = re.compile(
    r"\b(?:is|are|was|were|has|have|had|can|could|will|would|should|may|might|must|did|does|do)\b"
)
NEGATION = re.compile(
    r" (?:not|never|no longer|by no means|hardly)\b(?! (?:only|just|merely))|n['’]t\b|(?<=can)not\b"
)
INSERTED = (
    *(
        " not",
        " not",
        " not",
        " not",
        " never",
        " never",
        " no longer",
        " no longer",
        " hardly",
        " by no means",
    ),
    *(" in no way", " under no circumstances", " on no account", " at no time", " anything but", " far from"),
)
CONTRACTED = re.compile("(?:is|are|was|were|has|have|had|could|would|should|did|does|do)")

_NAME = r"[A-Z][\w’'-]*[a-z][\w-]*(?: [A-Z][\w’'-]*[a-z][\w-]*)*"
NAME = re.compile(rf"(?<=[a-z0-9,;] ){_NAME}")  # not the first word of the sentence
NAME_AT_START = re.compile(_NAME)
# What stands between the members of an enumeration, whose order does not matter
ENUMERATION = re.compile(r"(?:[\s,;/&()]|\b(?:and|or|with|as well as)\b|\b[A-Z][\w’'-]*|\b\d[\d.,]*)*")

DIGITS = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?![\d%]*\w)")
NUMBER_WORDS = (
    *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
    *(
        "fifteen",
        "twenty",
        "thirty",
        "forty",
        "fifty",
        "sixty",
        "first",
        "second",
        "third",
        "fourth",
        "fifth",
    ),
    *("sixth", "seventh", "tenth"),
)
SCALES = ("thousand", "million", "billion", "trillion")
# Units of one quantity; synonyms are joined by a bar, and never replace each other
UNITS = (
    ("percent|per cent", "percentage points", "permille"),
    ("dollars", "euros", "pounds", "yen", "francs", "rubles", "rupees", "pesos", "florins", "livres"),
    ("km|kilometers|kilometres", "miles|mi", "m|meters|metres", "ft|feet", "inches", "yards", "cm", "mm"),
    ("km2|square kilometers", "square miles|sq mi", "acres", "hectares"),
    ("kilograms|kg", "tons|tonnes", "grams", "lb", "ounces", "stones"),
    ("seconds", "minutes", "hours", "days", "weeks", "months", "years", "decades", "centuries"),
    ("°C", "°F"),
    ("watts", "kW", "MW", "volts", "kHz", "MHz", "GHz"),
    ("liters", "gallons", "barrels"),
    ("AM|am", "PM|pm"),
    ("BC|BCE", "AD|CE"),
    ("KB", "MB", "GB", "TB"),
)
CURRENCIES = ("$", "€", "£", "¥")
QUANTITY = rf"(?:\d|\b(?:{'|'.join([*SCALES, *NUMBER_WORDS])}))"  # what a unit follows
OPPOSITES = (
    "more/less more/fewer most/least above/below increased/decreased increase/decrease increases/decreases "
    "increasing/decreasing higher/lower highest/lowest high/low larger/smaller largest/smallest large/small "
    "greater/lesser greatest/smallest longer/shorter longest/shortest long/short rose/fell "
    "rising/falling "  # codespell:ignore rising
    "grew/shrank growing/shrinking growth/decline majority/minority maximum/minimum stronger/weaker strong/weak "
    "faster/slower fast/slow better/worse best/worst older/younger oldest/youngest expanded/contracted "
    "gained/lost many/few wider/narrower heavy/light rich/poor hot/cold warm/cool warmer/cooler deep/shallow "
    "major/minor upper/lower inside/outside internal/external often/rarely common/rare popular/unpopular "
    "successful/unsuccessful easy/difficult easier/harder raised/lowered improved/worsened positive/negative "
    "advantage/disadvantage accepted/rejected allowed/forbidden legal/illegal possible/impossible rapid/gradual "
    "thick/thin wealthy/impoverished abundant/scarce dense/sparse"
)
BOUNDS = "over/under over/below exceeding/under above/below at_least/at_most more_than/less_than"
TIMES = (
    "before/after earlier/later until/since previous/subsequent previously/subsequently prior/subsequent early/late "
    "first/last beginning/end began/ended begin/end started/finished preceded/followed preceding/following "
    "opening/closing opened/closed oldest/newest initial/final initially/finally predecessor/successor "
    "ancient/modern earliest/latest past/future"
)

CHINESE_INSERTED = "不没未"
CHINESE_VERB = re.compile(
    "(?<![不没未无只就])(?:是|有|可以|能够|属于|位于|包括|使用|出现|获得|成为|担任|允许|支持|需要|参加|得到|接受|采用|受到|适合|"
    "存在|承认|同意|完成|知道|影响|达到|举行|进行|建立|出版|发行|参与|拥有|喜欢|改变)"
)
CHINESE_NEGATION = re.compile(
    "(?:不(?=[是能会可须需应得愿想予准允敢被含属]|再|存在|支持|适合|接受|使用|包括|影响|明|足|到|久)"
    "|没(?=有)|未(?=[能有被曾获完得受经成见])|并非(?=是)|无(?=法))"
)
CHINESE_NUMBER = re.compile(r"\d+(?:\.\d+)?")
CHINESE_SCALES = ("万", "亿", "千")
CHINESE_UNITS = (
    ("公里|千米", "米", "厘米", "毫米", "英里", "英尺"),
    ("美元", "欧元", "日元", "英镑", "港元", "元|人民币", "卢布"),
    ("公斤|千克", "吨", "磅", "克"),
    ("平方公里", "平方米", "公顷", "亩"),
    ("年", "个月", "日|天", "小时", "分钟", "秒", "周"),
    ("人|名", "户", "座", "次", "部", "所", "集", "艘", "岁"),
)
CHINESE_OPPOSITES = (
    "高于/低于 大于/小于 多于/少于 超过/不足 增加/减少 上升/下降 提高/降低 最大/最小 最高/最低 最多/最少 较大/较小 "
    "较高/较低 以上/以下 增长/下跌 扩大/缩小 最长/最短 最早/最晚 常见/罕见 著名/无名 胜利/失败 成功/失败 主要/次要"
)
CHINESE_TIMES = (
    "之前/之后 以前/以后 年前/年后 开始/结束 首次/末次 早期/晚期 最初/最后 第一/最后 上午/下午 "
    "前任/继任 初期/末期 首任/末任"
)


def _replaced(sentence: str, match: re.Match[str], text: str) -> str:
    return sentence[: match.start()] + text + sentence[match.end() :]


def _negated(sentence: str, names: Sequence[str], draw: random.Random) -> str | None:
    """Without one of its negations, or with one after an auxiliary verb."""
    if removed := list(NEGATION.finditer(sentence)):
        return _replaced(sentence, draw.choice(removed), "")
    auxiliaries = list(AUXILIARY.finditer(sentence))
    if not auxiliaries:
        return None
    match = draw.choice(auxiliaries)
    negation = draw.choice(INSERTED)
    if CONTRACTED.fullmatch(match[0]) and draw.random() < 0.25:
        negation = draw.choice(("n't", "n’t"))
    return _replaced(sentence, match, match[0] + negation)


def _renamed(sentence: str, names: Sequence[str], draw: random.Random) -> str | None:
    """With another name in place of one that does not begin the sentence."""
    found = list(NAME.finditer(sentence))
    return _replaced(sentence, draw.choice(found), draw.choice(names)) if found and names else None


def _first_renamed(sentence: str, names: Sequence[str], draw: random.Random) -> str | None:
    """With another name as its first words; only for sentences that begin with a name."""
    match = NAME_AT_START.match(sentence)
    return _replaced(sentence, match, draw.choice(names)) if match and names else None


def _swapped(pattern: re.Pattern[str]) -> Rule:
    """With two matches of `pattern` exchanged that are not members of one enumeration."""

    def rule(sentence: str, names: Sequence[str], draw: random.Random) -> str | None:
        found = list(pattern.finditer(sentence))
        pairs = [
            (a, b)
            for i, a in enumerate(found)
            for b in found[i + 1 :]
            if not {*a[0].split()} & {*b[0].split()}
            and not ENUMERATION.fullmatch(sentence, a.end(), b.start())
        ]
        if not pairs:
            return None
        a, b = draw.choice(pairs)
        return sentence[: a.start()] + b[0] + sentence[a.end() : b.start()] + a[0] + sentence[b.end() :]

    return rule


def _digit_changed(pattern: re.Pattern[str]) -> Rule:
    """With one digit of a number changed, so that the number does not occur in the sentence."""

    def rule(sentence: str, names: Sequence[str], draw: random.Random) -> str | None:
        found = list(pattern.finditer(sentence))
        if not found:
            return None
        match = draw.choice(found)
        place = draw.choice([i for i, character in enumerate(match[0]) if character.isdigit()])
        digits = [d for d in "123456789" if d != match[0][place]]
        number = match[0][:place] + draw.choice(digits) + match[0][place + 1 :]
        return None if number in sentence else _replaced(sentence, match, number)

    return rule


def _word_changed(
    groups: Sequence[Sequence[str]], before: str = "", after: str = "", whole: bool = True
) -> Rule:
    """With a word (or phrase) of a group replaced by another of its group.

    Args:
        groups: words that can replace each other; synonyms, joined by a bar, cannot.
        before: regular expression of what must precede the word.
        after: regular expression of what must follow it.
        whole: whether the word must not be a part of a longer one.
    """
    others: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        synonyms = [words.split("|") for words in group]
        for one, other in itertools.permutations(synonyms, 2):
            for word in one:
                others[word] += other
    choices = "|".join(re.escape(one) for one in sorted(others, key=len, reverse=True))
    edges = (r"(?<!\w)", r"(?!\w)") if whole else ("", "")
    pattern = re.compile(f"(?:{before}){edges[0]}(?P<word>{choices}){edges[1]}(?={after})", re.IGNORECASE)

    def rule(sentence: str, names: Sequence[str], draw: random.Random) -> str | None:
        found = [m for m in pattern.finditer(sentence) if m["word"] in others or m["word"].lower() in others]
        if not found:
            return None
        match = draw.choice(found)
        old = match["word"]
        new = draw.choice(others.get(old) or others[old.lower()])
        if old[0].isupper() and old not in others:
            new = new[0].upper() + new[1:]
        if re.search(rf"{edges[0]}{re.escape(new)}{edges[1]}", sentence):
            return None
        return sentence[: match.start("word")] + new + sentence[match.end("word") :]

    return rule


def _any_of(*rules: Rule) -> Rule:
    """The first rule, in random order, that can change the sentence."""

    def rule(sentence: str, names: Sequence[str], draw: random.Random) -> str | None:
        changes = (one(sentence, names, draw) for one in draw.sample(rules, len(rules)))
        return next((changed for changed in changes if changed), None)

    return rule


def _pairs(words: str) -> list[list[str]]:
    return [[one.replace("_", " ") for one in pair.split("/")] for pair in words.split()]


def _negated_chinese(sentence: str, names: Sequence[str], draw: random.Random) -> str | None:
    """Without one of its negations, or with one before a verb."""
    if removed := list(CHINESE_NEGATION.finditer(sentence)):
        return _replaced(sentence, draw.choice(removed), "")
    verbs = list(CHINESE_VERB.finditer(sentence))
    if not verbs:
        return None
    match = draw.choice(verbs)
    negation = "没" if match[0] == "有" else draw.choice(CHINESE_INSERTED)
    return _replaced(sentence, match, negation + match[0])


ENGLISH: dict[str, Rule] = {
    "negation inserted or removed": _negated,
    "name replaced": _renamed,
    "name at its beginning replaced": _first_renamed,
    "two names exchanged": _swapped(NAME),
    "two numbers exchanged": _swapped(DIGITS),
    "number changed": _any_of(_digit_changed(DIGITS), _word_changed([NUMBER_WORDS])),
    "scale changed": _word_changed([SCALES], before=rf"{QUANTITY}[ -]"),
    "unit changed": _any_of(
        _word_changed(UNITS, before=rf"{QUANTITY}[ -]?"),
        _word_changed([("%", "‰")], before=r"\d\s?", whole=False),
        _word_changed([CURRENCIES], after=r"\s?\d", whole=False),
    ),
    "more and less exchanged": _any_of(
        _word_changed(_pairs(OPPOSITES)), _word_changed(_pairs(BOUNDS), after=r"[^.;]{0,8}\d")
    ),
    "before and after exchanged": _word_changed(_pairs(TIMES)),
}

CHINESE: dict[str, Rule] = {
    "negation inserted or removed": _negated_chinese,
    "number changed": _any_of(
        _digit_changed(CHINESE_NUMBER),
        _word_changed(
            ["二三四五六七八九"],
            before="[第共有约达为是]",
            after="[年月日个人次名座部届位级集分岁种]",
            whole=False,
        ),
    ),
    "scale changed": _word_changed([CHINESE_SCALES], before=r"[\d十]", whole=False),
    "unit changed": _word_changed(CHINESE_UNITS, before=r"[\d万亿十百千]多?", whole=False),
    "more and less exchanged": _word_changed(_pairs(CHINESE_OPPOSITES), whole=False),
    "before and after exchanged": _word_changed(_pairs(CHINESE_TIMES), whole=False),
}
