"""The HTTP routes beside Gradio's: images, downloads, health and metrics, and all other APIs."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from canvas import validation
from canvas.api.a1111 import A1111Api
from canvas.api.a1111_controlnet import ControlNetApi
from canvas.api.base import error_response
from canvas.api.openai_images import OpenAIImagesApi
from canvas.api.replies import HealthReply, OwnErrorReply
from canvas.errors import CanvasError
from canvas.history.metadata import embed, open_image
from canvas.history.queries import from_query_params
from canvas.image_formats import IMAGE_FORMATS
from canvas.jobs.job import Job
from canvas.request import JobStatus
from canvas.settings import data_dir_id
from canvas.studio import Studio

UNFINISHED: tuple[JobStatus, ...] = ("queued", "downloading", "loading", "running")
# The file of a name never changes, but it may be deleted: clients must revalidate.
CACHE_HEADERS = {"Cache-Control": "private, no-cache"}


def build_routes(studio: Studio) -> list[BaseRoute]:
    """All routes that are added to the Gradio app."""
    api_app = FastAPIOffline(  # serves the scripts of /docs itself
        title="Magic Canvas",
        description="The HTTP API. Gradio's own API is documented at /?view=api.",
        docs_url="/docs",
        redoc_url=None,
    )
    images, server = ImageRoutes(studio), ServerRoutes(studio)
    router = APIRouter()
    health: dict[int | str, dict[str, Any]] = {200: {"model": HealthReply}, 503: {"model": HealthReply}}
    for path, endpoint, tag, responses in (
        ("/healthz", server.health, "Server", health),
        ("/pictures/{filename}", images.picture, "Images", _file_responses("image/*")),
        ("/thumbnails/{filename}", images.thumbnail, "Images", _file_responses("image/*")),
        ("/downloads/{filename}", images.download, "Images", _file_responses("image/*")),
        ("/export.zip", images.export, "Images", _file_responses("application/zip")),
    ):
        router.get(path, response_model=None, tags=[tag], responses=responses)(endpoint)
        router.head(path, response_model=None, include_in_schema=False)(endpoint)
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    router.get("/metrics", response_model=None, response_class=Response, tags=["Server"], responses=text)(
        server.metrics
    )
    apis = (OpenAIImagesApi(studio), A1111Api(studio), ControlNetApi(studio))
    for included in (*(api.router for api in apis), router):
        api_app.include_router(included)
    _describe_access(api_app)
    return list(api_app.routes)


def _file_responses(media_type: str) -> dict[int | str, dict[str, Any]]:
    """The answers of a route for files, for /docs."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"description": "The file.", "content": content}, 404: {"model": OwnErrorReply}}


def _describe_access(api_app: FastAPI) -> None:
    """Add the API key to the OpenAPI description: /docs then has a button Authorize."""
    describe = api_app.openapi

    def openapi() -> dict[str, Any]:
        schema = describe()
        description = "Created with `python -m canvas keys create NAME`; not required on localhost."
        schemes = {"ApiKey": {"type": "http", "scheme": "bearer", "description": description}}
        schema.setdefault("components", {})["securitySchemes"] = schemes
        schema["security"] = [{"ApiKey": []}, {}]
        return schema

    api_app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents


class ExportParams(BaseModel):
    """The gallery's filters, or `ids`; and the format of the exported files.

    `since` and `until` are ISO 8601 dates or times, `size` is 512x768, `ids` is 1,2,3. Without
    `image_format` the files are exported unchanged. `everybody` is for the administrator.
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


class ImageRoutes:
    """Image files for anyone who knows their unguessable names, and ZIP export for their owner."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def picture(self, request: Request, filename: str) -> Response:
        """The stored file with its embedded settings."""
        return self._file_response(request, filename, thumbnail=False)

    def thumbnail(self, request: Request, filename: str) -> Response:
        """A small WebP version."""
        return self._file_response(request, filename, thumbnail=True)

    def download(self, filename: str, image_format: str = "png") -> Response:
        """The image as an attachment in a format (png, jpeg, webp), with its settings embedded."""
        try:
            validation.choice("image_format", image_format, IMAGE_FORMATS)
            content = self._convert(filename, image_format)
        except CanvasError as error:
            return error_response(error)
        name = Path(filename).stem + IMAGE_FORMATS[image_format].suffix
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=IMAGE_FORMATS[image_format].mime_type, headers=headers)

    def export(self, request: Request, params: Annotated[ExportParams, Query()]) -> Response:
        """The caller's images as a ZIP, with metadata.csv and metadata.jsonl."""
        owner = request.state.owner
        try:
            query = from_query_params(params.model_dump(exclude_none=True))
            if not params.everybody:
                query = replace(query, owner=owner)
            quality = validation.integer_from_text("quality", params.quality or "95", 1, 100)
            chunks = self._studio.user_gallery(owner).export(query, params.image_format or None, quality)
        except CanvasError as error:
            return error_response(error)
        headers = {"Content-Disposition": 'attachment; filename="magic-canvas.zip"'}
        return StreamingResponse(chunks, media_type="application/zip", headers=headers)

    def _file_response(self, request: Request, filename: str, *, thumbnail: bool) -> Response:
        try:
            path = self._studio.image_path(filename, thumbnail)
        except CanvasError as error:
            return error_response(error)
        headers = {**CACHE_HEADERS, "ETag": f'"{path.name}"'}
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return FileResponse(path, headers=headers)

    def _convert(self, filename: str, image_format: str) -> bytes:
        path = self._studio.image_path(filename)
        image = self._studio.image_by_filename(filename)
        if image.request.image_format == image_format:
            return path.read_bytes()
        image = replace(image, request=replace(image.request, image_format=image_format))
        with open_image(path) as opened:
            return embed(replace(image, image=opened))


class ServerRoutes:
    """`/healthz` and `/metrics`."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._registry = CollectorRegistry()
        self._registry.register(StudioCollector(studio))

    def health(self) -> Response:
        """The server's state; `ready` once the default model is in memory, `free_bytes` of disk.

        Reads no database, so that it answers while another program locks it. The status code is 503
        while the data folder is missing.
        """
        settings = self._studio.settings
        device = self._studio.device_if_known
        free = free_bytes(settings.data_dir)
        return JSONResponse(
            {
                "status": "data folder missing" if free is None else "ok",
                "ready": self._studio.is_loaded(settings.model),
                "model": settings.model,
                "device": device.name if device else None,
                "dtype": device.dtype if device else None,
                "jobs": count_unfinished(self._studio.jobs(None)),
                "folder": data_dir_id(settings.data_dir),
                "requires_api_key": settings.requires_api_key,
                "asks_for_keys": settings.requires_api_key,  # its name before version 0.2
                "free_bytes": free,
            },
            503 if free is None else 200,
        )

    def metrics(self) -> Response:
        """Metrics in the Prometheus text format."""
        try:
            content = generate_latest(self._registry)
        except CanvasError as error:
            return error_response(error)
        return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})


class StudioCollector(Collector):
    """Prometheus metrics, read from the database and the job registry when they are scraped."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        images = CounterMetricFamily("canvas_pictures", "Images, by model.", labels=["model"])
        seconds = CounterMetricFamily("canvas_generation_seconds", "Seconds of generation, by model.", labels=["model"])
        for totals in self._studio.generation_totals():
            images.add_metric([totals.model_key], totals.images)
            seconds.add_metric([totals.model_key], totals.seconds)
        yield images
        yield seconds
        jobs = GaugeMetricFamily("canvas_jobs", "Unfinished jobs, by status.", labels=["status"])
        for status, count in count_unfinished(self._studio.jobs(None)).items():
            jobs.add_metric([status], count)
        yield jobs
        yield from self._collect_workers()
        free = free_bytes(self._studio.settings.data_dir)
        if free is not None:
            yield GaugeMetricFamily("canvas_disk_free_bytes", "Free bytes of the data folder.", free)

    def _collect_workers(self) -> Iterator[Metric]:
        finished = CounterMetricFamily(
            "canvas_node_jobs", "Jobs that have finished since the start, by node.", labels=["node", "status"]
        )
        for (node, status), count in self._studio.jobs_by_node.items():
            finished.add_metric([node, status], count)
        yield finished
        loaded = GaugeMetricFamily(
            "canvas_worker_models", "Models in memory, by worker.", labels=["worker", "node", "model"]
        )
        for backend in self._studio.backends:
            for model_key in self._studio.models_of(backend):
                loaded.add_metric([backend.name, backend.node, model_key], 1)
        yield loaded


def count_unfinished(jobs: list[Job]) -> dict[str, int]:
    """The number of jobs of each unfinished status."""
    counts = Counter(job.status for job in jobs)
    return {status: counts[status] for status in UNFINISHED}


def free_bytes(folder: Path) -> int | None:
    """Free bytes of the disk of a folder; None if the folder is missing."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
