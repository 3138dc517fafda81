"""What everybody should know of this server before they begin: its link, how long it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from canvas.ui.panel import render

if TYPE_CHECKING:
    from canvas.links import SharedLink
    from canvas.settings import Settings

PATIENCE = 30.0  # seconds: Gradio gives the tunnel as many


def notices(settings: Settings, link: SharedLink | None) -> str:
    """The lines above the header, once it is known whether there is a link."""
    if link:
        link.settled.wait(PATIENCE)
    qr = link.qr_svg() if link and link.address else ""
    return render("notice.html", link=link, qr=qr, lasting=settings.lasting)
