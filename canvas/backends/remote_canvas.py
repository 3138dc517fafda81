"""Pictures by another Magic Canvas: the same request, sent to its address with a key."""

from __future__ import annotations

import base64
import binascii
import io
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from canvas.errors import GenerationCancelled, LazyMessage, RemoteBackendError
from canvas.request import LOCAL, GeneratedImage, GenerationRequest, ProgressUpdate

STOPPED = "Server stopped."  # how the client tells that a server was ended properly
POLL_INTERVAL = 0.1  # seconds between two looks at what the other has said


@dataclass(frozen=True)
class RemoteServer:
    """Another Magic Canvas; `key` is what `python -m canvas keys make NAME` gave there."""

    address: str
    key: str = ""

    @property
    def host(self) -> str:
        """Its name without what may be secret in an address."""
        return urlsplit(self.address).hostname or self.address


def generate(
    request: GenerationRequest,
    pictures: Mapping[str, Image.Image],
    machine: RemoteServer,
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
) -> Generator[GeneratedImage]:
    """The pictures of a resolved request, made and kept there, too; raises ElsewhereFailed."""
    with tempfile.TemporaryDirectory() as folder, _translate_errors(machine):
        client = _connect(machine, folder)
        try:
            files = _files(pictures, Path(folder))
            for index in range(request.num_images):
                single = request.for_image(index)

                def tell(step: ProgressUpdate, index: int = index) -> None:
                    on_step(replace(step, image_index=index, num_images=request.num_images))

                path, facts = _submit(client, single, files, tell, cancelled)
                with Image.open(path) as image:
                    yield _image(single, facts, image.convert("RGB"), machine)
        finally:
            client.close()


def _connect(machine: RemoteServer, folder: str) -> Any:
    from gradio_client import Client

    headers = {"Authorization": f"Bearer {machine.key}"} if machine.key else {}
    return Client(
        machine.address,
        token=False,  # the Hub's token is none of its business
        headers=headers,
        verbose=False,
        download_files=folder,
        analytics_enabled=False,
    )


def _files(pictures: Mapping[str, Image.Image], folder: Path) -> dict[str, Any]:
    from gradio_client import handle_file

    files = {}
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        picture.save(path)
        files[name] = handle_file(path)
    return files


def _submit(
    client: Any,
    request: GenerationRequest,
    files: dict[str, Any],
    on_step: Callable[[ProgressUpdate], None],
    cancelled: threading.Event,
) -> tuple[str, dict[str, Any]]:
    """One picture: where it was fetched to, and what the other says of it."""
    if cancelled.is_set():
        raise GenerationCancelled("Stopped.")
    plain = {"backend": LOCAL, "image": None, "mask_image": None, "image_format": "png"}
    fields = request.to_dict() | plain | {"watermark": ""}  # marked when it is kept here
    job = client.submit(fields, files.get("image"), files.get("mask_image"), api_name="/draw")
    seen = 0
    while not job.done():
        if cancelled.is_set():
            job.cancel()
            raise GenerationCancelled("Stopped.")
        said = job.outputs()[seen:]
        seen += len(said)
        for _, facts in said[-1:]:
            if "num_steps" in facts:
                on_step(_step(facts))
        time.sleep(POLL_INTERVAL)
    path, facts = job.result()
    return path, facts


def _step(facts: Mapping[str, Any]) -> ProgressUpdate:
    preview = None
    if encoded := facts.get("preview"):
        try:
            preview = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
        except (binascii.Error, OSError):
            preview = None  # a picture less on the way is no failure
    return ProgressUpdate(
        facts["step"], facts["num_steps"], seconds_left=facts["seconds_left"], preview=preview
    )


def _image(
    request: GenerationRequest, facts: Mapping[str, Any], image: Image.Image, machine: RemoteServer
) -> GeneratedImage:
    return GeneratedImage(
        request=request,
        enhanced_prompt=str(facts["enhanced_prompt"]),
        generation_time=float(facts["generation_time"]),
        device=f"remote:{machine.host}",
        dtype=str(facts["dtype"]),
        model_revision=str(facts["model_revision"]),
        notes=(*map(str, facts["notes"]), f"Made by {machine.host} on its {facts['device']}."),
        image=image,
    )


@contextmanager
def _translate_errors(machine: RemoteServer) -> Iterator[None]:
    import httpx

    try:
        with _translate_connect_errors(machine):
            yield
    except CancelledError as error:  # the client's word for a connection that broke off
        raise _connection_lost(machine) from error
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise _auth_error(machine) from error
        raise _unreachable(machine) from error
    except (httpx.HTTPError, OSError) as error:
        raise _unreachable(machine) from error


@contextmanager
def _translate_connect_errors(machine: RemoteServer) -> Iterator[None]:
    from gradio_client.exceptions import AppError, AuthenticationError
    from gradio_client.utils import QueueError, TooManyRequestsError

    try:
        yield
    except AuthenticationError as error:
        raise _auth_error(machine) from error
    except AppError as error:
        if "keys make" in str(error):  # what a Magic Canvas says to who brings no key
            raise _auth_error(machine) from error
        said = LazyMessage("{host} says: {reason}", host=machine.host, reason=error)
        raise RemoteBackendError(said) from error
    except (QueueError, TooManyRequestsError) as error:
        said = LazyMessage("{host} is too busy: try again in a minute.", host=machine.host)
        raise RemoteBackendError(said) from error
    except (ValueError, KeyError, TypeError) as error:  # no such function, or another answer
        if str(error) == STOPPED:
            raise _connection_lost(machine) from error
        text = "{host} answers, but not as a Magic Canvas of this version does."
        raise RemoteBackendError(LazyMessage(text, host=machine.host)) from error


def _auth_error(machine: RemoteServer) -> RemoteBackendError:
    return RemoteBackendError(
        LazyMessage(
            "{host} refuses the key: make one there with `python -m canvas keys make NAME` and "
            "set CANVAS_REMOTE_KEY.",
            host=machine.host,
        )
    )


def _connection_lost(machine: RemoteServer) -> RemoteBackendError:
    return RemoteBackendError(
        LazyMessage(
            "{host} went away before the picture was there: see whether it still runs.",
            host=machine.host,
        )
    )


def _unreachable(machine: RemoteServer) -> RemoteBackendError:
    return RemoteBackendError(
        LazyMessage(
            "{host} cannot be reached: see whether it runs, and whether CANVAS_REMOTE is its "
            "address.",
            host=machine.host,
        )
    )
