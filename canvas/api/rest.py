"""The HTTP routes beside Gradio's: pictures by name, and whether the server is well."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter
from fastapi import Query as Asked
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from canvas import validation
from canvas.api.a1111 import A1111Api, A1111Edits
from canvas.api.base import error_response
from canvas.api.openai_images import Edits, OpenAI
from canvas.errors import CanvasError, InvalidInput, MissingApiKey, NotFound
from canvas.history.metadata import embed, open_picture
from canvas.history.queries import from_query_params
from canvas.jobs.job import Job
from canvas.request import IMAGE_FORMATS, JobStatus
from canvas.settings import data_dir_id

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from canvas.studio import Studio


UNFINISHED: tuple[JobStatus, ...] = ("queued", "downloading", "loading", "running")


class Metrics(Collector):
    """Numbers read when they are asked for, from the database and the jobs."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def metrics(self, request: Request) -> Response:
        """The text that Prometheus reads."""
        return Response(
            generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not ask before somebody reads."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The families, fresh."""
        pictures = CounterMetricFamily(
            "canvas_pictures", "Pictures kept, by model.", labels=["model"]
        )
        seconds = CounterMetricFamily(
            "canvas_generation_seconds", "Seconds spent on them.", labels=["model"]
        )
        for totals in self._studio.generation_totals():
            pictures.add_metric([totals.model_key], totals.images)
            seconds.add_metric([totals.model_key], totals.seconds)
        yield pictures
        yield seconds
        jobs = GaugeMetricFamily("canvas_jobs", "Unfinished jobs, by status.", labels=["status"])
        counts = count_jobs(self._studio.jobs(None))
        for status, count in counts.items():
            jobs.add_metric([status], count)
        yield jobs
        free = shutil.disk_usage(self._studio.settings.data_dir).free
        yield GaugeMetricFamily("canvas_disk_free_bytes", "Free where pictures are kept.", free)


def count_jobs(jobs: list[Job]) -> dict[str, int]:
    """How many jobs there are of each status that is not the end."""
    found = Counter(job.status for job in jobs)
    return {status: found[status] for status in UNFINISHED}


SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


class ExportParams(BaseModel):
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

    def archive(self, request: Request, asked: Annotated[ExportParams, Asked()]) -> Response:
        """Pictures of the asker as a ZIP, with metadata.csv and metadata.jsonl."""
        owner = getattr(request.state, "owner", None)
        try:
            if owner is None:
                raise NotFound("Log in to see your pictures.")
            query = from_query_params(asked.model_dump(exclude_none=True))
            if not asked.everybody:
                query = replace(query, owner=owner)
            wanted, quality = asked.image_format or None, asked.quality or "95"
            if not quality.isdecimal():
                raise InvalidInput("quality", quality, "1 to 100")
            pieces = self._studio.user_gallery(owner).export(query, wanted, int(quality))
        except CanvasError as error:
            return error_response(error)
        headers = {"Content-Disposition": 'attachment; filename="magic-canvas.zip"'}
        return StreamingResponse(pieces, media_type="application/zip", headers=headers)

    def _converted(self, filename: str, wanted: str) -> Response:
        path = self._studio.image_path(filename)
        image = self._studio.image_by_filename(filename)
        if image.request.image_format == wanted:
            content = path.read_bytes()
        else:
            described = replace(image, request=replace(image.request, image_format=wanted))
            with open_picture(path) as pixels:
                content = embed(replace(described, image=pixels))
        name = Path(filename).stem + SUFFIXES[wanted]
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=f"image/{wanted}", headers=headers)


# A name belongs to one picture forever, but only until that is deleted: always ask again.
CACHING = {"Cache-Control": "private, no-cache"}


def build_routes(studio: Studio) -> list[BaseRoute]:
    """All routes of the programs' doors over one studio."""
    pictures, exports = ImageRoutes(studio), Exports(studio)
    programs = FastAPIOffline(  # its page needs no other server
        title="Magic Canvas",
        description="The same pictures for every client. Gradio's own API is under /?view=api.",
        docs_url="/docs",
        redoc_url=None,
    )
    openai, sdapi = OpenAI(studio), A1111Api(studio)
    Edits(studio, openai).add_to(openai.router)
    A1111Edits(studio, sdapi).add_to(sdapi.router)
    programs.include_router(openai.router)
    programs.include_router(sdapi.router)
    ours = APIRouter()
    for path, answer, tag in (
        ("/healthz", HealthRoutes(studio).health, "The server"),
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


class ImageRoutes:
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
            return error_response(MissingApiKey())
        try:
            path = self._studio.image_path(filename, thumbnail)
        except CanvasError as error:
            return error_response(error)
        headers = {**CACHING, "ETag": f'"{path.name}"'}
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return FileResponse(path, headers=headers)


class HealthRoutes:
    """Whether the server can make pictures, for whatever watches over it."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def health(self, request: Request) -> Response:
        """Ready (the preselected model is in memory), the device, free disk in bytes."""
        settings = self._studio.settings
        device = self._studio.device_if_known
        state = self._studio.model_status(settings.model)
        return JSONResponse(
            {
                "status": "ok",
                "ready": state.location == "memory",
                "model": settings.model,
                "device": device.name if device else None,
                "dtype": device.dtype if device else None,
                "jobs": count_jobs(self._studio.jobs(None)),
                "folder": data_dir_id(settings.data_dir),
                "asks_for_keys": settings.requires_api_key,
                "free_bytes": shutil.disk_usage(settings.data_dir).free,
            }
        )
