"""The painter elsewhere: what it says before anything is sent, who may use it, and its way."""

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

TO_MACHINE = (
    "Your prompt, settings and source pictures go to {host}, which makes the picture and keeps "
    "a copy in its own history. It costs nothing but that machine's time."
)
TO_ANY_PROVIDER = (
    "Your prompt and settings go to Hugging Face Inference Providers (provider: the first in "
    "your Hugging Face settings; model: {model}), with your token. Each picture is charged to "
    "your Hugging Face account at the provider's price, from your credits first: see "
    "https://huggingface.co/docs/inference-providers/pricing"
)
TO_PROVIDER = (
    "Your prompt and settings go to Hugging Face Inference Providers (provider: {provider}; "
    "model: {model}), with your token. Each picture is charged to your Hugging Face account at "
    "the provider's price, from your credits first: see "
    "https://huggingface.co/docs/inference-providers/pricing"
)
NO_ADDRESS = "Set CANVAS_REMOTE to the address of the other Magic Canvas."
LOCAL_MODEL = "{model} is a model of this computer and served nowhere: pick another."
NO_ACCOUNT = (
    "Set HF_TOKEN to a token from https://huggingface.co/settings/tokens that may use Inference "
    "Providers."
)
UNTIL_THEN = "another place until then. {reason}"
NOT_YET = (
    "{terms} Nothing was sent yet. Agree first: by the button under Where on the page, --agree on "
    'the command line, or "agree": true in a request to /v1/images/generations.'
)
NOT_OPEN = (
    "{place} is not open to visitors, as the owner of this server pays for it. Choose this "
    "computer."
)


class RemoteBackends:
    """Inference providers and another Magic Canvas, behind the users' agreement.

    An agreement counts for its owner, the place and, where models cost differently, the
    model, until the program ends.
    """

    def __init__(self, settings: Settings, hub: Hub | None = None) -> None:
        self._settings = settings
        self._hub = hub
        self._account = inference_providers.ProviderConfig(
            settings.provider_token, settings.provider
        )
        self._machine = remote_canvas.RemoteServer(settings.remote or "", settings.remote_key or "")
        self._agreed: set[tuple[str, str]] = set()
        self._checker: ImageSafetyChecker | None = None

    def available(self) -> list[str]:
        """The places that the page offers."""
        if not self._is_allowed:
            return [LOCAL]
        return [LOCAL, HF_INFERENCE, REMOTE] if self._machine.address else [LOCAL, HF_INFERENCE]

    @property
    def _is_allowed(self) -> bool:
        """Strangers do not spend the owner's token; who has signed in is one of them, too."""
        return not self._settings.is_public or self._settings.remote_for_visitors

    def consent_text(self, where: str, spec: ModelSpec) -> LazyMessage:
        """What using a place means: who gets what, and who pays."""
        if where == REMOTE:
            return LazyMessage(TO_MACHINE, host=self._machine.host)
        which = self._account.provider
        text = TO_ANY_PROVIDER if which == "auto" else TO_PROVIDER
        return LazyMessage(text, provider=which, model=spec.name)

    def grant_consent(self, owner: str, where: str, spec: ModelSpec) -> None:
        """Remember that the owner agrees to `terms`."""
        self._agreed.add((owner, self.consent_text(where, spec)))

    def has_consent(self, owner: str, where: str, spec: ModelSpec) -> bool:
        """Whether nothing need be asked."""
        return where == LOCAL or (owner, self.consent_text(where, spec)) in self._agreed

    def unavailable_reason(self, where: str, spec: ModelSpec) -> LazyMessage | None:
        """What is missing before a place can be used."""
        if where == REMOTE and not self._machine.address:
            return LazyMessage(NO_ADDRESS)
        if where == HF_INFERENCE and spec.is_local:
            return LazyMessage(LOCAL_MODEL, model=spec.key)
        if where == HF_INFERENCE and not self._account.has_token():
            return LazyMessage(NO_ACCOUNT)
        return None

    def check(self, request: GenerationRequest, spec: ModelSpec, owner: str) -> None:
        """Raise the reason why this request must not be sent, or not yet."""
        if request.backend == LOCAL:
            return
        if not self._is_allowed:
            raise ContentBlocked(
                LazyMessage(NOT_OPEN, place=LazyMessage(BACKENDS[request.backend]))
            )
        if reason := self.unavailable_reason(request.backend, spec):
            raise InvalidInput("backend", request.backend, LazyMessage(UNTIL_THEN, reason=reason))
        if request.backend == HF_INFERENCE:
            inference_providers.check(request, spec)
        if not self.has_consent(owner, request.backend, spec):
            raise ConsentRequired(
                LazyMessage(NOT_YET, terms=self.consent_text(request.backend, spec))
            )

    def generate(
        self, order: GenerationTask, tell: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        """The finished pictures of an order that has been checked."""
        tell(status="running")
        checker = self._safety_checker(cancelled)  # before anything is charged
        with closing(self._pictures(order, tell, cancelled)) as pictures:
            for picture in pictures:
                yield postprocess(picture, checker)

    def _pictures(
        self, order: GenerationTask, tell: ProgressCallback, cancelled: threading.Event
    ) -> Generator[GeneratedImage]:
        request = order.request
        if request.backend == HF_INFERENCE:
            return inference_providers.generate(request, order.spec, self._account, cancelled)
        pictures = order.inputs.images
        return remote_canvas.generate(
            request, pictures, self._machine, lambda step: tell(step=step), cancelled
        )

    def _safety_checker(self, cancelled: threading.Event) -> ImageSafetyChecker | None:
        if self._settings.safety_level == "full" and self._checker is None:
            folder = safety.find_checker(hub=self._hub)
            folder = folder or safety.fetch_checker(lambda _: None, cancelled, hub=self._hub)
            device = Device("cpu", "float32", "the place of the checker")
            self._checker = ImageSafetyChecker(device, folder)
        return self._checker
