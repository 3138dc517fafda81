"""Pictures on their way out: one in another format, or many with their settings as a ZIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse

from canvas import validation
from canvas.api.errors import error_response
from canvas.errors import CanvasError, InvalidInput, NotFound
from canvas.history.metadata import embed, open_picture
from canvas.history.queries import from_link
from canvas.request import IMAGE_FORMATS

if TYPE_CHECKING:
    from starlette.requests import Request

    from canvas.studio import Studio

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


class Exports:
    """Downloads of what an owner made."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def picture(self, request: Request) -> Response:
        """`/downloads/{filename}?image_format=webp`: a picture as a file, settings embedded."""
        try:
            wanted = request.query_params.get("image_format", "png")
            validation.choice("image_format", wanted, IMAGE_FORMATS)
            return self._converted(request.path_params["filename"], wanted)
        except CanvasError as error:
            return error_response(error)

    def archive(self, request: Request) -> Response:
        """`/export.zip`: what the gallery's filters or `ids=1,2,3` find, as files in a format."""
        owner = getattr(request.state, "owner", None)
        asked = request.query_params
        try:
            if owner is None:
                raise NotFound("Log in to see your pictures.")
            query = from_link(asked)
            if not asked.get("everybody"):
                query = replace(query, owner=owner)
            wanted, quality = asked.get("image_format") or None, asked.get("quality") or "95"
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
