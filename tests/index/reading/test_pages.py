"""Pages in JSON are found as in the list."""

from hypothesis import given
from hypothesis import strategies as st

from index.reading.pages import Pages, pages_in_json


@given(
    st.sampled_from(["page", "line"]),
    st.lists(st.integers(0, 40) | st.integers(0, 10_000), max_size=30),
    st.integers(0, 45) | st.integers(0, 11_000),
    st.integers(0, 50) | st.integers(0, 11_000),
)
def test_pages_are_found_without_parsing_all_of_the_json(unit, starts, start, length):
    pages = Pages(unit, tuple(sorted(starts)))
    end = start + length
    assert pages_in_json(pages.to_json(), start, end) == pages.of(start, end)
