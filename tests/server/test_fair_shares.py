"""One address with many invented visitors gets the share of one address, on the real server."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from canvas import GenerationRequest, Studio
from canvas.jobs.queue import PUBLIC, Visitor, account_of
from canvas.server.identity import COOKIE, visitor_owner_id
from tests import visitors
from tests.app_server import save_image, serving

CROWD = 60  # invented visitors; each submits once


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    data = tmp_path_factory.mktemp("public")
    with serving(data, public=True, trusted_proxies=("127.0.0.1",)) as studio:
        yield studio


def submit(browser: visitors.Visitor, **headers: str) -> None:
    """Submit a slow job in the page, with these headers."""
    browser.client.headers.update(headers)
    event = browser.event("page_generate")
    browser.call(event, browser.inputs_of(event, Prompt="a fox", Steps=50))


def unfinished(studio: Studio) -> list[str]:
    return [job.owner for job in studio.jobs(None) if not job.finished]


def test_invented_cookies_do_not_multiply_the_share_of_an_address(served: Studio) -> None:
    browser = visitors.Visitor(served.url)  # type: ignore[attr-defined]
    tokens = [secrets.token_hex(16) for _ in range(CROWD)]

    def attack(token: str) -> None:
        attacker = visitors.Visitor(served.url, cookies=False)  # type: ignore[attr-defined]
        attacker.config = browser.config
        submit(attacker, **{"cookie": f"{COOKIE}={token}", "x-forwarded-for": "2001:db8::" + token[:4]})
        attacker.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attack, tokens))
    owners = unfinished(served)
    assert len(owners) == PUBLIC.max_queued_per_network, "an IPv6 network of 64 bits is one address"
    assert {account_of(owner) for owner in owners} == {"2001:db8::/64"}
    assert not set(owners) & {visitor_owner_id(token) for token in tokens}, "an invented identity was used"

    submit(browser, **{"x-forwarded-for": "198.51.100.1"})
    [job] = [job for job in served.jobs(None) if account_of(job.owner) == "198.51.100.1/32"]
    assert isinstance(job.owner, Visitor)
    assert served.queue_position(job) <= 2, "its turn is next, after the running job"
    with_key = served.submit(GenerationRequest("a fox"), "key-ann")
    assert served.queue_position(with_key) <= 3
    browser.close()
    served.stop()


def test_a_visitor_of_an_earlier_version_keeps_the_images(tmp_path: Path) -> None:
    token = secrets.token_hex(16)
    with serving(tmp_path, public=True) as studio:
        image = save_image(studio, visitor_owner_id(token))
        browser = visitors.Visitor(studio.url, cookies=False)  # type: ignore[attr-defined]
        response = browser.client.get("/export.zip", headers={"cookie": f"{COOKIE}={token}"})
        assert image.filename.encode() in response.content
        signed = response.cookies[COOKIE]
        assert signed.startswith(f"{token}.")
        browser.client.cookies.clear()
        response = browser.client.get("/export.zip", headers={"cookie": f"{COOKIE}={signed}"})
        assert image.filename.encode() in response.content
        assert COOKIE not in response.cookies
        browser.close()
