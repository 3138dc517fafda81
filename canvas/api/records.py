"""The functions published as Gradio API and MCP tools: what was made, and what is being made."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas import validation
from canvas.api.publishing import (
    File,
    caller,
    file_of,
    progress_of,
    published,
    settings_of,
    told,
)

if TYPE_CHECKING:
    from canvas.studio import Studio


class Records:
    """What looks and stops, bound to one studio; a caller sees what is theirs."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    @published(list[dict])
    def history(
        self, limit: int = 20, offset: int = 0, request: gr.Request | None = None
    ) -> list[dict]:
        """List your pictures with their settings, the newest first.

        Args:
            limit: 1 to 200.
            offset: How many of the newest to skip.
        """
        with told():
            images = self._studio.recent(
                caller(request),
                validation.whole_number("limit", limit, 1, 200),
                validation.whole_number("offset", offset, 0, 2**53),
            )
            return [{"id": image.id, **image.settings()} for image in images]

    @published(gr.FileData, dict)
    def image(self, image_id: int, request: gr.Request | None = None) -> tuple[File, dict]:
        """Get one of your pictures and its settings.

        Args:
            image_id: The id that history lists.
        """
        with told():
            number = validation.whole_number("image_id", image_id, 1, 2**53)
            image = self._studio.image(number, caller(request))
            return file_of(self._studio, image), settings_of(self._studio, [image])

    @published(list[dict])
    def status(self, request: gr.Request | None = None) -> list[dict]:
        """List your jobs of the last hour: what waits, what runs and how far, what ended how."""
        with told():
            return [progress_of(self._studio, job) for job in self._studio.jobs(caller(request))]

    @published(dict)
    def cancel(self, job_id: str, request: gr.Request | None = None) -> dict[str, Any]:
        """Stop one of your jobs, within one step if it runs.

        Args:
            job_id: The id that status lists.
        """
        with told():
            job = self._studio.job(str(job_id), caller(request))
            job.cancel()
            return progress_of(self._studio, job)

    @published(str)
    @gr.mcp.resource("canvas://pictures", mime_type="text/plain")
    def recent_pictures(self, request: gr.Request | None = None) -> str:
        """Your latest pictures with their settings, as JSON."""
        return json.dumps(self.history(request=request))

    @published(str)
    @gr.mcp.resource("canvas://pictures/{image_id}", mime_type="image/png")
    def picture(self, image_id: str, request: gr.Request | None = None) -> str:
        """One of your pictures, its file in base64.

        Args:
            image_id: The id that history lists.
        """
        with told():
            number = validation.whole_number("image_id", _number(image_id), 1, 2**53)
            image = self._studio.image(number, caller(request))
            content = self._studio.picture_path(image.filename).read_bytes()
            return base64.b64encode(content).decode()


def _number(text: object) -> object:
    return int(text) if isinstance(text, str) and text.isdecimal() else text
