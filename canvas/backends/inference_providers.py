"""Pictures by Hugging Face's Inference Providers, with the user's token and at their cost."""

from __future__ import annotations

import binascii
import json
import queue
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import UnidentifiedImageError

from canvas.catalog import ModelSpec
from canvas.engine.prompts import enhance_negative_prompt, enhance_prompt
from canvas.errors import GenerationCancelled, InvalidInput, LazyMessage, RemoteBackendError
from canvas.request import GeneratedImage, GenerationRequest

POLL_INTERVAL = 0.1  # seconds between two looks whether the job was stopped
TIMEOUT = 300.0  # seconds for one picture: a provider may have to load the model first
SERVER_FAULT = 500  # from this status on it is not the request's fault
NOTE = "The provider chose the scheduler, and may take seed, steps and size as hints."
# What a request may not ask for, as `text_to_image` has no word for it: field, plain value.
UNSUPPORTED_FIELDS: tuple[tuple[str, Any], ...] = (
    ("task", "text_to_image"),
    ("loras", ()),
    ("variation_seed", None),
    ("prompt_weighting", False),
)
ERROR_MESSAGES = {
    401: "Hugging Face does not take the token: make a new one at "
    "https://huggingface.co/settings/tokens.",
    402: "The credits for Inference Providers are used up: see "
    "https://huggingface.co/settings/billing.",
    403: "The token may not use Inference Providers: allow it at "
    "https://huggingface.co/settings/tokens.",
    404: "{model} is not served by {provider}: pick another model.",
    410: "{model} is not served by {provider} any more: pick another model.",
    429: "{provider} limits how often you may ask, or your quota is used up: wait, or see "
    "https://huggingface.co/settings/billing.",
    503: "{provider} is too busy, or still loads {model}: try again in a minute.",
}


# An answer without what the library reads from it, or with something else in its place.
NO_IMAGE = (
    UnidentifiedImageError,
    json.JSONDecodeError,
    binascii.Error,
    UnicodeError,
    LookupError,
    TypeError,
)
UNEXPECTED = "The provider's answer could not be understood; the log says more."


@dataclass(frozen=True)
class ProviderConfig:
    """Whose token pays, and which provider is asked; None is what `hf auth login` has left."""

    token: str | None = None
    provider: str = "auto"

    def has_token(self) -> bool:
        """Whether there is a token at all."""
        from huggingface_hub import get_token

        return bool(self.token or get_token())


def check(request: GenerationRequest, spec: ModelSpec) -> None:
    """Raise InvalidInput for what a provider cannot be asked."""
    for field, plain in UNSUPPORTED_FIELDS:
        if (value := getattr(request, field)) != plain:
            raise InvalidInput(field, value, f"{plain!r} at an inference provider")
    if spec.is_local:
        raise InvalidInput(
            "model_key",
            spec.key,
            "a model of the Hub at an inference provider: this is a local one",
        )


def generate(
    request: GenerationRequest, spec: ModelSpec, account: ProviderConfig, cancelled: threading.Event
) -> Generator[GeneratedImage]:
    """The pictures of a resolved request; raises ElsewhereFailed with the reason in words."""
    prompt = enhance_prompt(request, spec)
    for index in range(request.num_images):
        single, started = request.for_image(index), time.perf_counter()

        def ask(single: GenerationRequest = single) -> Any:
            return _call(prompt, single, spec, account)

        image = _call_cancellable(cancelled, ask)
        yield GeneratedImage(
            request=single,
            enhanced_prompt=prompt,
            generation_time=time.perf_counter() - started,
            device=f"provider:{account.provider}",
            dtype="",
            notes=(NOTE,),
            image=image.convert("RGB"),
        )


def _call_cancellable(cancelled: threading.Event, ask: Callable[[], Any]) -> Any:
    """The answer, unless the job is stopped: the call itself cannot be taken back."""
    answers: queue.Queue[tuple[Any, RemoteBackendError | None]] = queue.Queue()

    def answer() -> None:
        said: tuple[Any, RemoteBackendError | None] = (
            None,
            RemoteBackendError(LazyMessage(UNEXPECTED)),
        )
        try:
            said = (ask(), None)
        except RemoteBackendError as error:
            said = (None, error)
        finally:  # whatever else happens is logged by the thread, and nobody waits for ever
            answers.put(said)

    if cancelled.is_set():
        raise GenerationCancelled("Stopped before anything was sent.")
    threading.Thread(target=answer, daemon=True).start()
    while True:
        if cancelled.is_set():
            raise GenerationCancelled("Stopped; the picture that was asked for may be charged.")
        try:
            image, error = answers.get(timeout=POLL_INTERVAL)
        except queue.Empty:
            continue
        if error:
            raise error
        return image


def _call(prompt: str, request: GenerationRequest, spec: ModelSpec, account: ProviderConfig) -> Any:
    import httpx2
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    names = {"model": spec.name, "provider": _name(account)}
    provider: Any = account.provider  # the library says which names it knows
    try:
        client = InferenceClient(
            provider=provider,
            token=account.token,
            timeout=TIMEOUT,
        )
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
        said = LazyMessage("{provider} gave no picture in time.", **names)
        raise RemoteBackendError(said) from error
    except NO_IMAGE as error:
        raise RemoteBackendError(LazyMessage("{provider} sent no picture.", **names)) from error
    except (httpx2.HTTPError, OSError) as error:
        said = LazyMessage("Hugging Face cannot be reached; check the connection.")
        raise RemoteBackendError(said) from error
    except (ValueError, StopIteration) as error:  # how the library says whom it does not know
        raise RemoteBackendError(LazyMessage(ERROR_MESSAGES[404], **names)) from error


def _error_message(error: Any, names: Mapping[str, str]) -> LazyMessage:
    status = error.response.status_code
    if status in ERROR_MESSAGES:
        return LazyMessage(ERROR_MESSAGES[status], **names)
    if status < SERVER_FAULT and error.server_message:
        text = "{provider} refuses this request: {reason}"
        return LazyMessage(text, reason=error.server_message, **names)
    return LazyMessage(
        "{provider} has a fault of its own (status {status}).", status=status, **names
    )


def _name(account: ProviderConfig) -> str:
    return LazyMessage("any provider") if account.provider == "auto" else account.provider
