"""The bounded list of names: it counts all names, and has the first of them."""

from hypothesis import given
from hypothesis import strategies as st

from activities.bucket.report import MOST_NAMES, NO_NAMES, NameList


@given(st.lists(st.lists(st.text(max_size=3), max_size=2 * MOST_NAMES), max_size=4))
def test_a_list_of_names_counts_all_and_keeps_the_first(parts: list[list[str]]) -> None:
    """Whether the names are added one by one or many at once."""
    names = [name for part in parts for name in part]
    expected = NameList(len(names), tuple(names[:MOST_NAMES]))
    by_part = one_by_one = NO_NAMES
    for part in parts:
        by_part = by_part.with_names(part)
        for name in part:
            one_by_one = one_by_one.with_names([name])
    assert by_part == one_by_one == expected
