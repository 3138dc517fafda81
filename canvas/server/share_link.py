"""The public link of this server: what it says, how long it lives, and its QR code."""

from __future__ import annotations

import io
import threading
from datetime import UTC, datetime, timedelta

LIFETIME = timedelta(weeks=1)  # what Gradio promises, at best
WIDTH = 64  # columns of the frame on the terminal


class ShareLink:
    """A link that is being opened, stands, or could not be had; `settled` is set when known.

    `address` and `reason` are empty until then; the one of them that applies is not after.
    """

    def __init__(self) -> None:
        self.address = ""
        self.reason = ""
        self.expires_at: datetime | None = None
        self.ready = threading.Event()

    def opened(self, address: str) -> None:
        """The tunnel is there."""
        self.address = address
        self.expires_at = datetime.now(UTC) + LIFETIME
        self.ready.set()

    def failed(self, reason: str) -> None:
        """There will be no link, for a reason in words."""
        self.reason = reason
        self.ready.set()

    @property
    def lifetime(self) -> str:
        """How long the link works, in words."""
        if self.expires_at is None:
            return ""
        until = self.expires_at.astimezone().strftime("%A %d %B, %H:%M")
        return f"It works until {until} at the latest, and only while this program runs."

    def terminal_text(self, local_url: str) -> str:
        """The link with its QR code, or why there is none and what works all the same."""
        if not self.address:
            return (
                f"No public link: {self.reason}\n"
                f"The page works on this machine: {local_url}\n"
                "For others in your network start it with --host 0.0.0.0 --auth USER:PASSWORD."
            )
        rule = "─" * WIDTH
        words = "Everybody who has it can make pictures here, and sees only their own."
        return (
            f"\n{rule}\n\n    {self.address}\n\n{rule}\n{self._drawn()}\n{self.lifetime}\n{words}\n"
        )

    def qr_svg(self) -> str:
        """The QR code as an inline SVG, dark on white whatever the page's colours."""
        import segno

        code = segno.make_qr(self.address)
        return code.svg_inline(scale=4, border=3, dark="#1f1b24", light="#ffffff", omitsize=True)

    def _drawn(self) -> str:
        import segno

        out = io.StringIO()
        segno.make_qr(self.address).terminal(out, compact=True, border=2)
        return out.getvalue()
