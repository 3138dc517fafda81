"""Pictures on their way out: one in another format, or many with their settings as a ZIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import Response, StreamingResponse

from canvas import validation
from canvas.api.errors import error_response
from canvas.errors import CanvasError, InvalidInput, NotFound
from canvas.history.export import export_zip
from canvas.history.metadata import embed, open_picture
from canvas.history.queries import Query
from canvas.request import IMAGE_FORMATS

if TYPE_CHECKING:
    from starlette.requests import Request

    from canvas.studio import Studio

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
FILTERS = ("text", "model_key", "style", "task")


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
        """`/export.zip`: the owner's pictures by the gallery's filters or by `ids=1,2,3`."""
        try:
            wanted = request.query_params.get("image_format")
            query = self._query(request)
            store, folder = self._studio.store, self._studio.gallery.folder
            pieces = export_zip(store, folder, query, image_format=wanted)
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

    def _query(self, request: Request) -> Query:
        owner = getattr(request.state, "owner", None)
        if owner is None:
            raise NotFound("Log in to see your pictures.")
        asked = request.query_params
        filters: dict[str, Any] = {name: asked[name] for name in FILTERS if asked.get(name)}
        favourite = True if asked.get("favourite") else None
        return Query(owner=owner, favourite=favourite, ids=_ids(asked.get("ids", "")), **filters)


def _ids(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    parts = text.split(",")
    if not all(part.isdecimal() and len(part) < 16 for part in parts):
        raise InvalidInput("ids", text, "numbers of pictures with commas between them")
    return tuple(int(part) for part in parts)
