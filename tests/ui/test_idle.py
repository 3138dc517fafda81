"""A page on which nothing happens sends next to nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Page, expect

SECONDS = 10.0
SETTLING = 5  # times 5 seconds, longer than between polls, until the tab is complete
MAX_REQUESTS = 2.0  # per second
MAX_BYTES = 2000.0  # per second, of requests and responses with their headers
TABS = ("Create", "Edit", "Compare", "Gallery", "Models", "Statistics")


@dataclass
class Traffic:
    """What a page sends and receives."""

    requests: list[str] = field(default_factory=list)
    bytes: int = 0

    def watch(self, page: Page) -> None:
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.requestWillBeSent", self._on_request)
        session.on("Network.requestWillBeSentExtraInfo", lambda event: self._count(event["headers"]))
        session.on("Network.responseReceivedExtraInfo", lambda event: self._count(event["headers"]))
        session.on("Network.dataReceived", self._on_data)

    def reset(self) -> None:
        self.requests.clear()
        self.bytes = 0

    def _on_request(self, event: dict[str, Any]) -> None:
        self.requests.append(event["request"]["url"])
        self.bytes += len(event["request"].get("postData", ""))

    def _on_data(self, event: dict[str, Any]) -> None:
        self.bytes += event["encodedDataLength"] or event["dataLength"]

    def _count(self, headers: dict[str, str]) -> None:
        self.bytes += sum(len(name) + len(value) + 4 for name, value in headers.items())


@pytest.mark.long
def test_an_idle_page_sends_little(page: Page) -> None:
    traffic = Traffic()
    traffic.watch(page)
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        for _ in range(SETTLING):  # images and lists that the tab shows first
            traffic.reset()
            page.wait_for_timeout(5000)
            if traffic.bytes < 5 * MAX_BYTES:
                break
        traffic.reset()
        page.wait_for_timeout(SECONDS * 1000)
        requests, size = len(traffic.requests) / SECONDS, traffic.bytes / SECONDS
        assert requests < MAX_REQUESTS, f"{tab}: {traffic.requests}"
        assert size < MAX_BYTES, f"{tab}: {size:.0f} bytes per second"
