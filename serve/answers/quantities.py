"""The numbers of a text with their scale ("5 million"), unit ("5 km") and bound ("below 5"), in English."""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from embed.text.content_terms import Term

_NUMBER_WORDS = (
    "1 first|2 two second|3 three third|4 four fourth|5 five fifth|6 six sixth|7 seven seventh|"
    "8 eight eighth|9 nine ninth|10 ten tenth|11 eleven eleventh|12 twelve twelfth dozen|"
    "13 thirteen thirteenth|14 fourteen fourteenth|15 fifteen fifteenth|16 sixteen sixteenth|"
    "17 seventeen seventeenth|18 eighteen eighteenth|19 nineteen nineteenth|20 twenty twentieth|30 thirty|"
    "40 forty|50 fifty|60 sixty|70 seventy|80 eighty|90 ninety"
)
NUMBERS = {word: line.split()[0] for line in _NUMBER_WORDS.split("|") for word in line.split()[1:]}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# The names of a unit in one line, the first of which stands for all
_UNITS = (
    "percent pct %|permille ‰|dollar dollars usd|euro euros eur|pound pounds gbp lb lbs|yen jpy|franc francs|"
    "ruble rubles|rouble roubles|rupee rupees|peso pesos|yuan renminbi rmb|won|krona kronor|crown crowns|"
    "mark marks|lira|cent cents|shilling shillings|kilometer kilometers kilometre kilometres km|"
    "meter meters metre metres m|centimeter centimeters cm|millimeter millimeters mm|mile miles mi|"
    "foot feet ft|inch inches|yard yards|acre acres|hectare hectares ha|kilogram kilograms kg|gram grams g|"
    "milligram milligrams mg|ton tons tonne tonnes|ounce ounces oz|seconds sec|minute minutes min|hour hours|"
    "day days|week weeks|month months|year years|decade decades|century centuries|millennium millennia|"
    "celsius c|fahrenheit f|kelvin k|watt watts w|kilowatt kilowatts kw|megawatt megawatts mw|gigawatt gw|"
    "volt volts v|hertz hz|khz|mhz|ghz|liter liters litre litres|gallon gallons|barrel barrels|am|pm|bc bce|"
    "ad ce|byte bytes|bit bits|kb|mb|gb|tb"
)
UNITS = {word: line.split()[0] for line in _UNITS.split("|") for word in line.split()}
CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen"}  # stand before the number
BOUNDS = {"over": ">", "above": ">", "exceeding": ">", "under": "<", "below": "<"} | {
    "before": "b",
    "after": "a",
}
SKIPPED = frozenset(("the", "a", "an", "about", *CURRENCIES))  # between a bound and its number
TWO_WORD_BOUNDS: dict[tuple[str, ...], str] = {
    ("more", "than"): ">", ("at", "least"): ">", ("less", "than"): "<", ("fewer", "than"): "<",
    ("at", "most"): "<", ("up", "to"): "<",
}  # fmt: skip
WORDS_OF = {
    bound: {w for w, b in BOUNDS.items() if b == bound}
    | {w for ws, b in TWO_WORD_BOUNDS.items() if b == bound for w in ws}
    for bound in {*BOUNDS.values()}
}


class Quantity(NamedTuple):
    """A number with its scale, its unit and the bound before it.

    Attributes:
        value: the number in digits, multiplied by its scale.
        unit: a unit of `UNITS`, or "".
        bound: a value of `BOUNDS`, or "".
        in_digits: whether it is written in digits.
    """

    value: str
    unit: str
    bound: str
    in_digits: bool


def quantities(terms: Sequence[Term]) -> list[Quantity]:
    """The numbers of a text in English, in digits or words."""
    words = [t.word.lower() for t in terms]
    found: list[Quantity] = []
    place = 0
    while place < len(terms):
        start = place
        value, place = _value(terms, words, place)
        if value:
            in_digits = terms[start].is_number
            found.append(Quantity(value, _unit(words, start, place), _bound(words, start), in_digits))
        else:
            place += 1
    return found


def _value(terms: Sequence[Term], words: Sequence[str], place: int) -> tuple[str, int]:
    """The number that begins at `place`, "" if none does, and the place after it."""
    if terms[place].is_number:
        value, after = terms[place].key, place + 1
    elif words[place] in NUMBERS:
        value, after = NUMBERS[words[place]], place + 1
        if len(value) == 2 and value[1] == "0" and after < len(words):  # twenty-one
            ones = "1" if words[after] in ("one", "first") else NUMBERS.get(words[after], "")
            if len(ones) == 1:
                value, after = value[0] + ones, after + 1
    elif words[place] in SCALES:
        value, after = "1", place
    elif words[place].removesuffix("s") in SCALES:  # millions of
        return words[place], place + 1
    else:
        return "", place
    while after < len(words) and words[after] in SCALES:
        try:
            value = f"{(Decimal(value) * SCALES[words[after]]).normalize():f}"
        except InvalidOperation:  # such as 1.2.3
            break
        after += 1
    return value, after


def _unit(words: Sequence[str], start: int, after: int) -> str:
    following = words[after : after + 3]
    if following[:1] in (["degree"], ["degrees"], ["°"]):
        following = following[1:]
    prefix = ""
    if following[:1] in (["square"], ["sq"], ["cubic"]):
        prefix, following = "square ", following[1:]
    for word in following[:1]:
        if word in UNITS:
            return prefix + UNITS[word]
    if start and words[start - 1] in CURRENCIES:
        return CURRENCIES[words[start - 1]]
    return prefix


def _bound(words: Sequence[str], start: int) -> str:
    before = [word for word in words[max(0, start - 4) : start] if word not in SKIPPED]
    return TWO_WORD_BOUNDS.get(tuple(before[-2:]), "") or BOUNDS.get(before[-1] if before else "", "")
