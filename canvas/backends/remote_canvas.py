"""Generates on another Magic Canvas, through its Gradio endpoint `/draw`."""

from __future__ import annotations

import io
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from canvas.backends.base import GenerationTask, ProgressCallback
from canvas.dynamic_prompts import escape
from canvas.errors import GenerationCancelled, InvalidInput, LazyMessage, RemoteBackendError
from canvas.guidance import GUIDANCE_FIELDS
from canvas.image_formats import decode_base64
from canvas.request import LOCAL, GeneratedImage, GenerationRequest, ProgressUpdate

STOPPED = "Server stopped."  # gradio_client's message for a server that shut down
POLL_INTERVAL = 0.1  # seconds
# In the server's error for a missing API key; version 0.1 had "keys make".
MISSING_KEY_HINTS = ("keys create", "keys make")
CONNECTION_LOST = "The connection to {host} was lost before the image was complete. Check that it still runs."
INCOMPATIBLE = "{host} is not a Magic Canvas of a compatible version."
INVALID_KEY = (
    "{host} rejected the API key. Create one there with `python -m canvas keys create NAME` and set CANVAS_REMOTE_KEY."
)
UNREACHABLE = "{host} cannot be reached. Check that it runs and that CANVAS_REMOTE is its address."


@dataclass(frozen=True)
class RemoteServer:
    """Another Magic Canvas; `api_key` was created there with `python -m canvas keys create`."""

    url: str
    api_key: str = ""

    @property
    def host(self) -> str:
        """The host name, without the parts of the URL that may be secret."""
        return urlsplit(self.url).hostname or self.url


def generate(
    task: GenerationTask, server: RemoteServer, on_progress: ProgressCallback, cancelled: threading.Event
) -> Generator[GeneratedImage]:
    """Yield the images of a task, which the server keeps, too; raises RemoteBackendError."""
    with tempfile.TemporaryDirectory() as folder, _translate_errors(server):
        client = _connect(server, folder)
        try:
            files = _save_images(task.inputs.images, Path(folder))
            num_images = task.request.num_images
            for index in range(num_images):
                request = task.request.for_image(index)

                def on_step(step: ProgressUpdate, index: int = index) -> None:
                    on_progress(step=replace(step, image_index=index, num_images=num_images))

                path, result = _submit(client, request, files, on_step, cancelled)
                with Image.open(path) as image:
                    yield _to_image(request, result, image.convert("RGB"), server)
        finally:
            client.close()


def _connect(server: RemoteServer, folder: str) -> Any:
    from gradio_client import Client

    return Client(
        server.url,
        token=False,  # do not send the Hub's token
        headers={"Authorization": f"Bearer {server.api_key}"} if server.api_key else {},
        verbose=False,
        download_files=folder,
        analytics_enabled=False,
    )


def _save_images(images: Mapping[str, Image.Image], folder: Path) -> dict[str, Any]:
    from gradio_client import handle_file

    files = {}
    for name, image in images.items():
        path = folder / f"{name}.png"
        image.save(path)
        files[name] = handle_file(path)
    return files


def _submit(
    client: Any,
    request: GenerationRequest,
    files: dict[str, Any],
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
) -> tuple[str, dict[str, Any]]:
    """Generate one image; returns the path of its downloaded file and its settings."""
    if cancelled.is_set():
        raise GenerationCancelled("Cancelled.")
    local = {"backend": LOCAL, "image": None, "mask_image": None, "image_format": "png"}
    fields = request.to_dict() | local | {"watermark": ""}  # it is added when the image is saved
    if not request.scale_to_size:  # unknown to servers before version 0.2
        del fields["scale_to_size"]
    for name in GUIDANCE_FIELDS:
        items = [{**item, "image": files[item["image"]]} for item in fields.pop(name)]
        fields |= {name: items} if items else {}
    fields |= {name: escape(fields[name]) for name in ("prompt", "negative_prompt")}  # expanded already
    job = client.submit(fields, files.get("image"), files.get("mask_image"), api_name="/draw")
    num_seen = 0
    while not job.done():
        if cancelled.is_set():
            job.cancel()
            raise GenerationCancelled("Cancelled.")
        outputs = job.outputs()[num_seen:]
        num_seen += len(outputs)
        for _, progress in outputs[-1:]:
            if "num_steps" in progress:
                on_step(_to_step(progress))
        time.sleep(POLL_INTERVAL)
    path, result = job.result()
    return path, result


def _to_step(progress: Mapping[str, Any]) -> ProgressUpdate:
    preview = None
    if encoded := progress.get("preview"):
        with suppress(InvalidInput, OSError):  # a missing preview is not an error
            preview = Image.open(io.BytesIO(decode_base64(encoded, "preview"))).convert("RGB")
    return ProgressUpdate(
        progress["step"], progress["num_steps"], seconds_left=progress["seconds_left"], preview=preview
    )


def _to_image(
    request: GenerationRequest, result: Mapping[str, Any], image: Image.Image, server: RemoteServer
) -> GeneratedImage:
    return GeneratedImage(
        request=request,
        enhanced_prompt=str(result["enhanced_prompt"]),
        generation_time=float(result["generation_time"]),
        device=f"remote:{server.host}",
        dtype=str(result["dtype"]),
        model_revision=str(result["model_revision"]),
        notes=(*map(str, result["notes"]), f"Generated by {server.host} on its {result['device']}."),
        image=image,
    )


@contextmanager
def _translate_errors(server: RemoteServer) -> Iterator[None]:
    import httpx
    from gradio_client.exceptions import AppError, AuthenticationError
    from gradio_client.utils import QueueError, TooManyRequestsError

    host = server.host
    try:
        yield
    except CancelledError as error:  # gradio_client raises it when the connection is lost
        raise RemoteBackendError(LazyMessage(CONNECTION_LOST, host=host)) from error
    except (AuthenticationError, AppError) as error:
        message = LazyMessage("{host} reported an error: {reason}", host=host, reason=error)
        if isinstance(error, AuthenticationError) or any(hint in str(error) for hint in MISSING_KEY_HINTS):
            message = LazyMessage(INVALID_KEY, host=host)
        raise RemoteBackendError(message) from error
    except (QueueError, TooManyRequestsError) as error:
        raise RemoteBackendError(LazyMessage("{host} is busy. Try again in a minute.", host=host)) from error
    except (httpx.HTTPError, OSError) as error:
        status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
        message = LazyMessage(INVALID_KEY, host=host) if status in (401, 403) else LazyMessage(UNREACHABLE, host=host)
        raise RemoteBackendError(message) from error
    except (ValueError, KeyError, TypeError) as error:  # no such endpoint, or another result
        is_lost = str(error) == STOPPED
        message = LazyMessage(CONNECTION_LOST, host=host) if is_lost else LazyMessage(INCOMPATIBLE, host=host)
        raise RemoteBackendError(message) from error
