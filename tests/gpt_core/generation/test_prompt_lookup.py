from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.generation.prompt_lookup import N_GRAM, Lookup

texts = st.lists(st.integers(0, 3), max_size=40)


def slow_guess(ids, n):
    """The tokens after the last earlier occurrence of the final n-gram, by exhaustive search."""
    if len(ids) < N_GRAM:
        return []
    for end in range(len(ids) - 1, N_GRAM - 1, -1):
        if ids[end - N_GRAM : end] == ids[-N_GRAM:]:
            return ids[end : end + n]
    return []


@settings(derandomize=True, deadline=None)
@given(first=texts, then=texts, n=st.integers(1, 10))
def test_a_guess_is_what_followed_the_last_time(first, then, n):
    lookup = Lookup(first)
    assert lookup.guess(n) == slow_guess(first, n)
    for i, token in enumerate(then):
        lookup.push(token)
        assert lookup.guess(n) == slow_guess(first + then[: i + 1], n)
