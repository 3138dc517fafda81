"""Pictures on their way out: one in another format, or many with their settings as a ZIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import Query as Asked
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from canvas import validation
from canvas.api.errors import error_response
from canvas.errors import CanvasError, InvalidInput, NotFound
from canvas.history.metadata import embed, open_picture
from canvas.history.queries import from_link
from canvas.request import IMAGE_FORMATS

if TYPE_CHECKING:
    from canvas.studio import Studio

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


class Selection(BaseModel):
    """Which pictures, by the gallery's filters or by numbers, and as what files.

    `since` and `until` are moments in ISO 8601, `size` is 512x768, `ids` is 1,2,3; without
    `image_format` the files go out as they are. `everybody` is for the administrator.
    """

    text: str | None = None
    model_key: str | None = None
    style: str | None = None
    task: str | None = None
    size: str | None = None
    since: str | None = None
    until: str | None = None
    favourite: str | None = None
    ids: str | None = None
    image_format: str | None = None
    quality: str | None = None
    everybody: str | None = None


class Exports:
    """Downloads of what an owner made."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def picture(self, filename: str, image_format: str = "png") -> Response:
        """A picture as a file in a format (png, jpeg, webp), settings embedded."""
        try:
            validation.choice("image_format", image_format, IMAGE_FORMATS)
            return self._converted(filename, image_format)
        except CanvasError as error:
            return error_response(error)

    def archive(self, request: Request, asked: Annotated[Selection, Asked()]) -> Response:
        """Pictures of the asker as a ZIP, with metadata.csv and metadata.jsonl."""
        owner = getattr(request.state, "owner", None)
        try:
            if owner is None:
                raise NotFound("Log in to see your pictures.")
            query = from_link(asked.model_dump(exclude_none=True))
            if not asked.everybody:
                query = replace(query, owner=owner)
            wanted, quality = asked.image_format or None, asked.quality or "95"
            if not quality.isdecimal():
                raise InvalidInput("quality", quality, "1 to 100")
            pieces = self._studio.collection(owner).export(query, wanted, int(quality))
        except CanvasError as error:
            return error_response(error)
        headers = {"Content-Disposition": 'attachment; filename="magic-canvas.zip"'}
        return StreamingResponse(pieces, media_type="application/zip", headers=headers)

    def _converted(self, filename: str, wanted: str) -> Response:
        path = self._studio.picture_path(filename)
        image = self._studio.store.image_by_filename(filename)
        if image is None:
            raise NotFound("There is no such picture.")
        if image.request.image_format == wanted:
            content = path.read_bytes()
        else:
            described = replace(image, request=replace(image.request, image_format=wanted))
            with open_picture(path) as pixels:
                content = embed(replace(described, image=pixels))
        name = Path(filename).stem + SUFFIXES[wanted]
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=f"image/{wanted}", headers=headers)
