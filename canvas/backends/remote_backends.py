"""Remote backends: consent before anything is sent, access rules, and the calls themselves."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing

from canvas.backends import inference_providers, remote_canvas
from canvas.backends.base import GenerationTask, ProgressCallback
from canvas.catalog import ModelSpec
from canvas.engine import safety
from canvas.engine.device import Device
from canvas.engine.safety import ImageSafetyChecker
from canvas.engine.tasks import postprocess
from canvas.errors import ConsentRequired, ContentBlocked, InvalidInput, LazyMessage
from canvas.models.hub_client import Hub
from canvas.request import BACKENDS, HF_INFERENCE, LOCAL, REMOTE, GeneratedImage, GenerationRequest
from canvas.settings import Settings

REMOTE_TERMS = (
    "Your prompt, settings and source images are sent to {host}, which generates the image and "
    "keeps a copy in its own history. You are not charged."
)
AUTO_PROVIDER_TERMS = (
    "Your prompt and settings are sent to Hugging Face Inference Providers (provider: the first in "
    "your Hugging Face settings; model: {model}) with your token. Each image is charged to "
    "your Hugging Face account at the provider's price; credits are used first. See "
    "https://huggingface.co/docs/inference-providers/pricing"
)
PROVIDER_TERMS = (
    "Your prompt and settings are sent to Hugging Face Inference Providers (provider: {provider}; "
    "model: {model}) with your token. Each image is charged to your Hugging Face account at "
    "the provider's price; credits are used first. See "
    "https://huggingface.co/docs/inference-providers/pricing"
)
NO_ADDRESS = "Set CANVAS_REMOTE to the address of the other Magic Canvas."
LOCAL_MODEL = "{model} is a local model, which inference providers do not have. Choose another."
NO_ACCOUNT = (
    "Set HF_TOKEN to a token that permits Inference Providers. Create one at https://huggingface.co/settings/tokens."
)
UNAVAILABLE = "{backend} is not available. {reason}"
CONSENT_REQUIRED = (
    '{terms} Nothing has been sent yet. To agree, use the button below "Run on" on the page, '
    '--accept-terms on the command line, or "accept_terms": true in a request to '
    "/v1/images/generations."
)
NOT_FOR_VISITORS = (
    "{backend} is not available to visitors, because the owner of this server pays for it. Choose This computer."
)


class RemoteBackends:
    """Inference providers and another Magic Canvas, usable after the user's consent.

    Consent is kept per owner, backend and, where prices depend on it, model, until the program
    ends.
    """

    def __init__(self, settings: Settings, hub: Hub | None = None) -> None:
        self._settings = settings
        self._hub = hub
        self._provider = inference_providers.ProviderConfig(settings.provider_token, settings.provider)
        self._server = remote_canvas.RemoteServer(settings.remote or "", settings.remote_key or "")
        self._consents: set[tuple[str, str]] = set()
        self._checker: ImageSafetyChecker | None = None

    def available(self) -> list[str]:
        """The backends that the page offers."""
        if not self._is_allowed:
            return [LOCAL]
        return [LOCAL, HF_INFERENCE, REMOTE] if self._server.url else [LOCAL, HF_INFERENCE]

    @property
    def _is_allowed(self) -> bool:
        """Visitors do not spend the owner's token, even if they are signed in."""
        return not self._settings.is_public or self._settings.remote_for_visitors

    def consent_text(self, backend: str, spec: ModelSpec) -> LazyMessage:
        """What a backend receives, and who pays."""
        if backend == REMOTE:
            return LazyMessage(REMOTE_TERMS, host=self._server.host)
        provider = self._provider.provider
        text = AUTO_PROVIDER_TERMS if provider == "auto" else PROVIDER_TERMS
        return LazyMessage(text, provider=provider, model=spec.name)

    def grant_consent(self, owner: str, backend: str, spec: ModelSpec) -> None:
        """Record that the owner agrees to `consent_text`."""
        self._consents.add((owner, self.consent_text(backend, spec)))

    def has_consent(self, owner: str, backend: str, spec: ModelSpec) -> bool:
        """Whether the owner agreed, or need not."""
        return backend == LOCAL or (owner, self.consent_text(backend, spec)) in self._consents

    def unavailable_reason(self, backend: str, spec: ModelSpec) -> LazyMessage | None:
        """The setting that is missing for a backend."""
        if backend == REMOTE and not self._server.url:
            return LazyMessage(NO_ADDRESS)
        if backend == HF_INFERENCE and spec.is_local:
            return LazyMessage(LOCAL_MODEL, model=spec.key)
        if backend == HF_INFERENCE and not self._provider.has_token():
            return LazyMessage(NO_ACCOUNT)
        return None

    def check(self, request: GenerationRequest, spec: ModelSpec, owner: str) -> None:
        """Raise ContentBlocked, InvalidInput or ConsentRequired if it must not be sent (yet)."""
        if request.backend == LOCAL:
            return
        backend = LazyMessage(BACKENDS[request.backend])
        if not self._is_allowed:
            raise ContentBlocked(LazyMessage(NOT_FOR_VISITORS, backend=backend))
        if reason := self.unavailable_reason(request.backend, spec):
            message = LazyMessage(UNAVAILABLE, backend=backend, reason=reason)
            raise InvalidInput("backend", request.backend, message=message)
        if request.backend == HF_INFERENCE:
            inference_providers.check(request)
        if not self.has_consent(owner, request.backend, spec):
            raise ConsentRequired(LazyMessage(CONSENT_REQUIRED, terms=self.consent_text(request.backend, spec)))

    def generate(
        self, task: GenerationTask, on_progress: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        """Yield the finished images of a task that has passed `check`."""
        on_progress(status="running")
        checker = self._safety_checker(cancelled)  # before anything is charged
        if task.request.backend == HF_INFERENCE:
            images = inference_providers.generate(task, self._provider, cancelled)
        else:
            images = remote_canvas.generate(task, self._server, on_progress, cancelled)
        with closing(images):
            for image in images:
                yield postprocess(image, checker)

    def _safety_checker(self, cancelled: threading.Event) -> ImageSafetyChecker | None:
        if self._settings.safety_level == "full" and self._checker is None:
            folder = safety.find_checker(hub=self._hub)
            folder = folder or safety.fetch_checker(lambda _: None, cancelled, hub=self._hub)
            self._checker = ImageSafetyChecker(Device("cpu", "float32", "the safety checker of remote images"), folder)
        return self._checker
