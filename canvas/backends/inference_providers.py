"""Generates with Hugging Face Inference Providers, using the user's token."""

from __future__ import annotations

import binascii
import json
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from PIL import UnidentifiedImageError

from canvas.backends.base import GenerationTask
from canvas.catalog import ModelSpec
from canvas.engine.image_io import resize_to_fit
from canvas.engine.prompts import enhance_negative_prompt, enhance_prompt
from canvas.errors import GenerationCancelled, InvalidInput, LazyMessage, RemoteBackendError
from canvas.request import GeneratedImage, GenerationRequest

POLL_INTERVAL = 0.1  # seconds
TIMEOUT = 300.0  # seconds for an image: a provider may have to load the model first
NOTE = "The provider chose the scheduler and may treat seed, steps and size as hints."
# Fields that `text_to_image` does not take: the value they must have, and how to say it.
UNSUPPORTED_FIELDS: tuple[tuple[str, Any, str], ...] = (
    ("task", "text_to_image", "text_to_image"),
    ("loras", (), "empty"),
    ("variation_seed", None, "empty"),
    ("prompt_weighting", False, "off"),
    ("control_images", (), "empty"),
    ("reference_images", (), "empty"),
)
ERROR_MESSAGES: Mapping[int, str] = {
    401: "Hugging Face rejected the token. Create a new one at https://huggingface.co/settings/tokens.",
    402: "The credits for Inference Providers are used up. See https://huggingface.co/settings/billing.",
    403: "The token does not permit Inference Providers. Allow them at https://huggingface.co/settings/tokens.",
    404: "{model} is not available from the inference provider ({provider}). Choose another model.",
    410: "{model} is no longer available from the inference provider ({provider}). Choose another model.",
    429: "The rate limit of the inference provider ({provider}) or your quota is exceeded. Wait, "
    "or see https://huggingface.co/settings/billing.",
    503: "The inference provider ({provider}) is busy or still loading {model}. Try again in a minute.",
}
UNREADABLE = "The response of the inference provider ({provider}) cannot be read; see the log."
# What the library raises for a response without an image.
NO_IMAGE = (UnidentifiedImageError, json.JSONDecodeError, binascii.Error, UnicodeError, LookupError, TypeError)


@dataclass(frozen=True)
class ProviderConfig:
    """The token that pays (None: the one of `hf auth login`) and the provider."""

    token: str | None = None
    provider: str = "auto"

    def has_token(self) -> bool:
        from huggingface_hub import get_token

        return bool(self.token or get_token())


def check(request: GenerationRequest) -> None:
    """Raise InvalidInput for fields that providers do not support."""
    for field, supported, label in UNSUPPORTED_FIELDS:
        if (value := getattr(request, field)) != supported:
            raise InvalidInput(field, value, f"{label} with an inference provider")


def generate(task: GenerationTask, config: ProviderConfig, cancelled: threading.Event) -> Generator[GeneratedImage]:
    """Yield the images of a task; raises RemoteBackendError."""
    prompt = enhance_prompt(task.request, task.spec)
    for index in range(task.request.num_images):
        request, started = task.request.for_image(index), time.perf_counter()

        def call(request: GenerationRequest = request) -> Any:
            return _call(prompt, request, task.spec, config)

        image = _call_cancellable(call, config, cancelled).convert("RGB")
        notes = [NOTE]
        if image.size != request.size:
            notes.append("The provider returned {}x{}, scaled to {}x{}.".format(*image.size, *request.size))
            image = resize_to_fit(image, request.size, request.resize_mode, request.fill_color)
        yield GeneratedImage(
            request=request,
            enhanced_prompt=prompt,
            generation_time=time.perf_counter() - started,
            device=f"provider:{config.provider}",
            dtype="",
            notes=tuple(notes),
            image=image,
        )


def _call_cancellable(call: Callable[[], Any], config: ProviderConfig, cancelled: threading.Event) -> Any:
    """Return what `call` returns, or stop waiting for it on cancellation."""
    if cancelled.is_set():
        raise GenerationCancelled("Cancelled before the request was sent.")
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except RemoteBackendError as error:
            result.set_exception(error)
        finally:  # the thread logs any other exception
            if not result.done():
                result.set_exception(RemoteBackendError(LazyMessage(UNREADABLE, provider=config.provider)))

    threading.Thread(target=run, daemon=True).start()
    while True:
        if cancelled.is_set():
            raise GenerationCancelled("Cancelled; the image already requested may be charged.")
        if wait([result], POLL_INTERVAL).done:
            return result.result()


def _call(prompt: str, request: GenerationRequest, spec: ModelSpec, config: ProviderConfig) -> Any:
    import httpx2
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    names = {"model": spec.name, "provider": config.provider}
    provider: Any = config.provider  # the library checks the name
    try:
        client = InferenceClient(provider=provider, token=config.token, timeout=TIMEOUT)
        return client.text_to_image(
            prompt,
            model=spec.name,
            negative_prompt=enhance_negative_prompt(request) or None,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            seed=request.seed,
        )
    except HfHubHTTPError as error:
        raise RemoteBackendError(_error_message(error, names)) from error
    except TimeoutError as error:
        message = LazyMessage("The inference provider ({provider}) did not respond in time.", **names)
        raise RemoteBackendError(message) from error
    except NO_IMAGE as error:
        message = LazyMessage("The inference provider ({provider}) returned no image.", **names)
        raise RemoteBackendError(message) from error
    except (httpx2.HTTPError, OSError) as error:
        raise RemoteBackendError(LazyMessage("Hugging Face cannot be reached; check the connection.")) from error
    except (ValueError, StopIteration) as error:  # unknown provider, or none for the model
        raise RemoteBackendError(LazyMessage(ERROR_MESSAGES[404], **names)) from error


def _error_message(error: Any, names: Mapping[str, str]) -> LazyMessage:
    status = error.response.status_code
    if status in ERROR_MESSAGES:
        return LazyMessage(ERROR_MESSAGES[status], **names)
    if status < 500 and error.server_message:
        text = "The inference provider ({provider}) rejected the request: {reason}"
        return LazyMessage(text, reason=error.server_message, **names)
    text = "The inference provider ({provider}) failed (status {status})."
    return LazyMessage(text, status=status, **names)
