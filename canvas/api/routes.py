"""The HTTP routes beside Gradio's: pictures by name, and whether the server is well."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi_offline import FastAPIOffline
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from canvas.api.access import asks_for_keys
from canvas.api.errors import error_response
from canvas.api.exports import Exports
from canvas.api.metrics import Metrics, count_jobs
from canvas.api.openai import OpenAI
from canvas.api.openai_edits import Edits
from canvas.api.presence import name_of
from canvas.api.sdapi import Sdapi
from canvas.api.sdapi_edits import SdapiEdits
from canvas.errors import CanvasError, NotAllowed

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from canvas.studio import Studio

# A name belongs to one picture forever, but only until that is deleted: always ask again.
CACHING = {"Cache-Control": "private, no-cache"}


def build_routes(studio: Studio) -> list[BaseRoute]:
    """All routes of the programs' doors over one studio."""
    pictures, exports = Pictures(studio), Exports(studio)
    programs = FastAPIOffline(  # its page needs no other server
        title="Magic Canvas",
        description="The same pictures for every client. Gradio's own API is under /?view=api.",
        docs_url="/docs",
        redoc_url=None,
    )
    openai, sdapi = OpenAI(studio), Sdapi(studio)
    Edits(studio, openai).add_to(openai.router)
    SdapiEdits(studio, sdapi).add_to(sdapi.router)
    programs.include_router(openai.router)
    programs.include_router(sdapi.router)
    ours = APIRouter()
    for path, answer, tag in (
        ("/healthz", Health(studio).health, "The server"),
        ("/pictures/{filename}", pictures.picture, "Pictures"),
        ("/thumbnails/{filename}", pictures.thumbnail, "Pictures"),
        ("/downloads/{filename}", exports.picture, "Pictures"),
        ("/export.zip", exports.archive, "Pictures"),
    ):
        ours.get(path, response_model=None, tags=[tag])(answer)
        ours.head(path, response_model=None, include_in_schema=False)(answer)
    ours.get("/metrics", response_model=None, tags=["The server"])(Metrics(studio).metrics)
    programs.include_router(ours)
    return list(programs.routes)


class Pictures:
    """Picture files, unchanged, to whoever knows a name that cannot be guessed."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def picture(self, request: Request, filename: str) -> Response:
        """The file as it was written, settings embedded."""
        return self._answer(request, filename, thumbnail=False)

    def thumbnail(self, request: Request, filename: str) -> Response:
        """A small WebP of it."""
        return self._answer(request, filename, thumbnail=True)

    def _answer(self, request: Request, filename: str, *, thumbnail: bool) -> Response:
        if getattr(request.state, "owner", None) is None:  # Gradio's login does not cover us
            return error_response(NotAllowed())
        try:
            path = self._studio.picture_path(filename, thumbnail)
        except CanvasError as error:
            return error_response(error)
        headers = {**CACHING, "ETag": f'"{path.name}"'}
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return FileResponse(path, headers=headers)


class Health:
    """Whether the server can make pictures, for whatever watches over it."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def health(self, request: Request) -> Response:
        """Ready (the preselected model is in memory), the device, free disk in bytes."""
        settings = self._studio.settings
        device = self._studio.device_if_known
        state = self._studio.model_state(settings.model)
        return JSONResponse(
            {
                "status": "ok",
                "ready": state.where == "memory",
                "model": settings.model,
                "device": device.name if device else None,
                "dtype": device.dtype if device else None,
                "jobs": count_jobs(self._studio.jobs(None)),
                "folder": name_of(settings.data_dir),
                "asks_for_keys": asks_for_keys(settings),
                "free_bytes": shutil.disk_usage(settings.data_dir).free,
            }
        )
