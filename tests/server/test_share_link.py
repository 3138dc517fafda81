from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from gradio.exceptions import ChecksumMismatchError

from canvas.server.share_link import ShareLink, open_share_link

LOCAL = "http://127.0.0.1:7860/"
SESSION = "abc"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """Opens a link over a tunnel that answers with an address or an error; returns the link and what is logged."""

    def open_with(answer: str | Exception, own_server: str | None = None) -> tuple[ShareLink, str]:
        def setup_tunnel(*options: object) -> str:
            assert options == ("127.0.0.1", 7860, SESSION, None, None)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr("gradio.networking.setup_tunnel", setup_tunnel)
        monkeypatch.setattr("gradio.networking.GRADIO_SHARE_SERVER_ADDRESS", own_server)
        caplog.set_level(logging.INFO, "canvas")
        link = ShareLink()
        assert not link.ready.is_set()
        page: Any = SimpleNamespace(
            server_name="127.0.0.1", server_port=7860, **{"share_token": SESSION}, local_url=LOCAL
        )
        open_share_link(link, page)
        assert link.ready.is_set()
        return link, caplog.text

    return open_with


def test_a_link_of_gradio_is_https_and_lives_a_week(opened: Any) -> None:
    before = datetime.now(UTC)
    link, text = opened("http://abc.gradio.live")
    assert link.address == "https://abc.gradio.live"
    assert before <= link.expires_at - timedelta(weeks=1) <= datetime.now(UTC)
    assert link.address in text
    assert "No public link" not in text
    assert "█" in text, "a QR code of half blocks fits on a terminal"


def test_a_link_of_an_own_server_keeps_its_scheme(opened: Any) -> None:
    link, _ = opened("http://share.example:7000", own_server="share.example:7000")
    assert link.address == "http://share.example:7000"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (httpx.ConnectError("No route to host.\nTraceback"), "No route to host. Is there an internet connection?"),
        (RuntimeError("The tunnel ended"), "The tunnel ended. Is there an internet connection?"),
        (ChecksumMismatchError(), "the downloaded tunnel program is damaged; try again."),
    ],
)
def test_a_failure_says_why_and_where_the_page_is(opened: Any, error: Exception, reason: str) -> None:
    link, text = opened(error)
    assert (link.address, link.reason, link.expires_at) == ("", reason, None)
    assert f"No public link: {reason}\n" in text
    assert LOCAL in text
    assert "█" not in text


def test_the_qr_code_of_the_page_fills_its_frame() -> None:
    link = ShareLink()
    link.opened("https://abc.gradio.live")
    svg = link.qr_svg()
    assert svg.startswith("<svg")
    assert "viewBox" in svg
    assert "width=" not in svg.partition(">")[0]
