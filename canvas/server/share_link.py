"""The public share link: opening the tunnel, terminal message and QR code."""

from __future__ import annotations

import io
import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradio import Blocks

LIFETIME = timedelta(weeks=1)  # the maximum that Gradio allows
RULE = "─" * 64


class ShareLink:
    """A share link; `ready` is set when it is open or has failed.

    `address` is set by the former, `reason` by the latter.
    """

    def __init__(self) -> None:
        self.address = ""
        self.reason = ""
        self.expires_at: datetime | None = None
        self.ready = threading.Event()

    def opened(self, address: str) -> None:
        self.address = address
        self.expires_at = datetime.now(UTC) + LIFETIME
        self.ready.set()

    def failed(self, reason: str) -> None:
        self.reason = reason
        self.ready.set()

    def terminal_text(self, local_url: str) -> str:
        """The link with its QR code, or why there is none."""
        if self.expires_at is None:
            return (
                f"No public link: {self.reason}\n"
                f"The page works on this machine: {local_url}\n"
                "For others in your network start it with --host 0.0.0.0 --auth USER:PASSWORD."
            )
        until = self.expires_at.astimezone().strftime("%A %d %B, %H:%M")
        return (
            f"\n{RULE}\n\n    {self.address}\n\n{RULE}\n{self._qr_text()}\n"
            f"It works until {until} at the latest, and only while this program runs.\n"
            "Anyone with the link can generate images here and sees only their own.\n"
        )

    def qr_svg(self) -> str:
        """The QR code as an inline SVG, dark on white in every theme."""
        import segno

        code = segno.make_qr(self.address)
        return code.svg_inline(scale=4, border=3, dark="#1f1b24", light="#ffffff", omitsize=True)

    def _qr_text(self) -> str:
        import segno

        out = io.StringIO()
        segno.make_qr(self.address).terminal(out, compact=True, border=2)
        return out.getvalue()


def open_share_link(link: ShareLink, page: Blocks) -> None:
    """Open Gradio's tunnel to a launched page, and log the link or the reason of a failure.

    Unlike `launch(share=True)` it does not delay the page, nor add scripts of another host.
    """
    from gradio.exceptions import ChecksumMismatchError
    from gradio.networking import GRADIO_SHARE_SERVER_ADDRESS, setup_tunnel
    from httpx import HTTPError

    try:
        address = setup_tunnel(page.server_name, page.server_port, page.share_token, None, None)
    except ChecksumMismatchError:
        link.failed("the downloaded tunnel program is damaged; try again.")
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        link.failed(f"{reason}. Is there an internet connection?")
    else:
        # Gradio's server has a certificate, although its client returns http://.
        is_own_server = GRADIO_SHARE_SERVER_ADDRESS is not None
        link.opened(address if is_own_server else "https://" + address.partition("://")[2])
    logging.getLogger(__name__).info("%s", link.terminal_text(page.local_url or ""))
