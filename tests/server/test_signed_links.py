from __future__ import annotations

import pytest

from canvas.server.signed_links import SignedLinks
from tests.server.test_auth import Clock

SECRET = b"a secret of a test, 32 bytes or more"


def test_a_link_is_valid_for_an_hour() -> None:
    clock = Clock()
    links = SignedLinks(SECRET, clock)
    query = links.query("fox.png")
    for seconds, valid in ((0, True), (3599, True), (1, False), (3600, False)):
        clock.seconds += seconds
        assert links.is_valid("fox.png", query) is valid, clock.seconds


def test_a_link_is_for_one_image_of_one_server() -> None:
    query = SignedLinks(SECRET, Clock()).query("fox.png")
    assert not SignedLinks(SECRET, Clock()).is_valid("boat.png", query)
    assert not SignedLinks(b"another" * 8, Clock()).is_valid("fox.png", query)


@pytest.mark.parametrize(
    "change",
    [
        ("expires=4600", "expires=4601"),
        ("expires=4600", "expires=" + "9" * 5000),
        ("expires=4600", "expires=x"),
        ("expires=4600", "expires=٤٦٠٠"),
        ("expires=4600&", ""),
        ("signature=", "signature=0"),
        ("&signature=", "&other="),
        ("expires=4600", "expires=4601&expires=4600"),
    ],
)
def test_a_changed_link_is_not_valid(change: tuple[str, str]) -> None:
    links = SignedLinks(SECRET, Clock())
    query = links.query("fox.png")
    assert change[0] in query
    assert not links.is_valid("fox.png", query.replace(*change))
    assert not links.is_valid("fox.png", "")


def test_further_parameters_do_not_matter() -> None:
    links = SignedLinks(SECRET, Clock())
    query = links.query("fox.png")
    assert links.is_valid("fox.png", f"{query}&download=1&expires=9&signature=9")
