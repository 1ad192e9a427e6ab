"""How a setting is read from the environment."""

import pytest

from activities.environment import amount, choice, whole_number


def test_an_empty_variable_is_not_set() -> None:
    """An empty variable has its default value."""
    environ = {"NUMBER": "", "AMOUNT": "", "CHOICE": ""}
    assert (whole_number(environ, "NUMBER", 7), whole_number({}, "NUMBER", 7)) == (7, 7)
    assert (amount(environ, "AMOUNT", 0.5), amount({}, "AMOUNT", 0.5)) == (0.5, 0.5)
    assert (choice(environ, "CHOICE", ("text", "json")), choice({}, "CHOICE", ("text", "json"))) == ("text", "text")


def test_a_value_within_its_range_is_taken() -> None:
    """A range includes both its ends."""
    assert [whole_number({"N": text}, "N", 1, low=0, high=9) for text in ("0", "5", "9")] == [0, 5, 9]
    assert whole_number({"N": "8589934592"}, "N", 1) == 8 << 30
    assert [amount({"A": text}, "A", 1) for text in ("0", ".5", "4.50", "1e3")] == [0, 0.5, 4.5, 1000]
    assert choice({"C": "json"}, "C", ("text", "json")) == "json"


@pytest.mark.parametrize("text", ["x", "1.5", "-1", "10", "9" * 5000])
def test_a_number_that_cannot_be_used_is_refused(text: str) -> None:
    """The message has the variable, its value and the range."""
    with pytest.raises(ValueError, match=f"^N is '{text}'; a whole number from 0 to 9 is wanted$"):
        whole_number({"N": text}, "N", 1, low=0, high=9)


@pytest.mark.parametrize("text", [" 8", "8\n", "+8", "-0", "0_8", "\N{ARABIC-INDIC DIGIT EIGHT}"])
def test_a_number_of_digits_only_has_no_other_spelling(text: str) -> None:
    """The settings of the API are written in digits; those of the workers in any way that ``int`` reads."""
    assert whole_number({"N": text}, "N", 1, low=0, high=9) == int(text)
    with pytest.raises(ValueError, match=r"; a whole number from 0 to 9 is wanted$"):
        whole_number({"N": text}, "N", 1, low=0, high=9, digits_only=True)


def test_a_number_without_an_upper_limit_has_a_lower_one() -> None:
    """The lower limit is 1 by default."""
    with pytest.raises(ValueError, match=r"^N is '0'; a whole number of at least 1 is wanted$"):
        whole_number({"N": "0"}, "N", 5)


@pytest.mark.parametrize("text", ["free", "-1", "nan", "inf"])
def test_an_amount_that_cannot_be_used_is_refused(text: str) -> None:
    """Infinity and not-a-number are no amounts."""
    with pytest.raises(ValueError, match=f"^A is '{text}'; a number of at least 0 is wanted$"):
        amount({"A": text}, "A", 1)


def test_a_choice_that_does_not_exist_is_refused() -> None:
    """The message lists the choices."""
    with pytest.raises(ValueError, match=r"^C is 'xml'; text or json is wanted$"):
        choice({"C": "xml"}, "C", ("text", "json"))
