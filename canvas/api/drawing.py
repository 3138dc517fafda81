"""The function that another Magic Canvas calls: a whole request with its pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.api.pictures_in import hand_in, submit
from canvas.api.publishing import (
    File,
    caller,
    channel_of,
    file_of,
    handed_in_path,
    progress_of,
    published,
    settings_of,
    told,
)
from canvas.api.watching import follow
from canvas.errors import InvalidInput
from canvas.request import GenerationRequest
from canvas.where import HERE

if TYPE_CHECKING:
    from canvas.jobs import Job
    from canvas.studio import Studio

NO_FILE: Any = None


class Drawing:
    """What serves another Magic Canvas, bound to one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    @published(gr.FileData, dict)
    async def draw(
        self,
        fields: dict,
        image: gr.FileData = NO_FILE,
        mask_image: gr.FileData = NO_FILE,
        request: gr.Request | None = None,
    ) -> AsyncIterator[tuple[File | None, dict]]:
        """Make the first picture of a request that is given by all its fields.

        On the way progress takes the place of the settings, with a small preview in base64.

        Args:
            fields: Those of GenerationRequest; where is always this server.
            image: The picture to start from.
            mask_image: White where it is to be redrawn.
        """
        with told():
            if not isinstance(fields, dict):
                raise InvalidInput("fields", fields, "the fields of a request by name")
            owner = caller(request)
            named = {"where": HERE, "num_images": 1, "image": None, "mask_image": None}
            for name, file in (("image", image), ("mask_image", mask_image)):
                if file:
                    named[name] = await hand_in(self._studio, handed_in_path(file, name), name)
            wish = GenerationRequest.from_dict(fields | named)
            job = await submit(self._studio, wish, owner, channel_of(request))
            async with aclosing(follow(job)) as changes:
                async for _ in changes:
                    if not job.finished:
                        yield None, progress_of(self._studio, job) | {"preview": _preview(job)}
            if job.error:
                raise job.error
            yield file_of(self._studio, job.images[0]), settings_of(self._studio, job.images)


def _preview(job: Job) -> str:
    if job.preview is None:
        return ""
    buffer = io.BytesIO()
    job.preview.convert("RGB").save(buffer, "JPEG", quality=70)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
