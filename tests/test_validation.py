"""The validators of single values, at the limits of what they accept."""

from __future__ import annotations

import pytest

from canvas import validation
from canvas.errors import InvalidInput
from canvas.validation import MAX_TEXT


def test_text_is_stripped_and_has_one_kind_of_line_end() -> None:
    assert validation.text("prompt", None) == ""
    assert validation.text("prompt", " a\r\nb\rc\td \n") == "a\nb\nc\td"
    assert validation.text("prompt", "x" * MAX_TEXT) == "x" * MAX_TEXT


@pytest.mark.parametrize("value", [5, b"a", "x" * (MAX_TEXT + 1), "a\0", "a\x7f", "\ud800"])
def test_other_text_is_rejected(value: object) -> None:
    with pytest.raises(InvalidInput, match="Prompt must be"):
        validation.text("prompt", value)


@pytest.mark.parametrize("value", [1, 2.5, 4])
def test_a_number_may_be_a_bound(value: float) -> None:
    result = validation.number("strength", value, 1, 4)
    assert (result, type(result)) == (value, float)


@pytest.mark.parametrize("value", [0.99, 4.01, True, "2", None, float("nan"), float("inf")])
def test_other_numbers_are_rejected(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"Strength must be a number between 1 and 4"):
        validation.number("strength", value, 1, 4)


@pytest.mark.parametrize(("value", "expected"), [(1, 1), (4, 4), (2.0, 2)])
def test_an_integer_may_be_a_bound_or_a_whole_float(value: float, expected: int) -> None:
    result = validation.integer("steps", value, 1, 4)
    assert (result, type(result)) == (expected, int)


@pytest.mark.parametrize("value", [0, 5, 2.5, True, "2", None, float("nan"), float("inf"), 10**400])
def test_other_integers_are_rejected(value: object) -> None:
    with pytest.raises(InvalidInput, match="Steps must be a whole number between 1 and 4"):
        validation.integer("steps", value, 1, 4)


def test_an_integer_is_read_from_digits() -> None:
    assert validation.integer_from_text("page", "12", 0, 20) == 12
    assert validation.integer_from_text("page", "1" + 18 * "0", 0, 10**18) == 10**18
    for text in ("", "a", "-1", "1.0", "21", "9" * 5000):
        with pytest.raises(InvalidInput, match="Page must be a whole number"):
            validation.integer_from_text("page", text, 0, 20)


def test_a_size_that_is_no_multiple_of_8_is_rejected_with_its_neighbours() -> None:
    assert validation.multiple_of_8("width", 512) == 512
    with pytest.raises(InvalidInput, match="a multiple of 8, such as 512 or 520"):
        validation.multiple_of_8("width", 513)


@pytest.mark.parametrize("value", ["red", "", None, 1])
def test_a_choice_is_one_of_its_names(value: object) -> None:
    assert validation.choice("sort", "newest", ("newest", "oldest")) == "newest"
    with pytest.raises(InvalidInput, match="Sort must be one of newest, oldest"):
        validation.choice("sort", value, ("newest", "oldest"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("app.localhost", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("192.168.1.2", False),
        ("::", False),
        ("example.org", False),
        ("notlocalhost", False),
    ],
)
def test_loopback_addresses_are_those_of_this_computer(host: str, expected: bool) -> None:
    assert validation.is_loopback(host) == expected
