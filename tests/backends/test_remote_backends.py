"""Images from an inference provider (real client, local server) and from another Magic Canvas."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import pytest
from gradio_client.exceptions import AppError, AuthenticationError
from gradio_client.utils import QueueError, TooManyRequestsError
from huggingface_hub import constants
from PIL import Image, ImageChops

from canvas import MODELS, GenerationRequest, Studio
from canvas.backends import inference_providers, remote_canvas
from canvas.backends.base import GenerationTask
from canvas.backends.inference_providers import ProviderConfig
from canvas.backends.remote_backends import RemoteBackends
from canvas.cli import main as cli
from canvas.engine import safety
from canvas.engine.device import Device
from canvas.engine.safety import ImageSafetyChecker
from canvas.errors import (
    ConsentRequired,
    ContentBlocked,
    GenerationCancelled,
    HubOffline,
    InvalidInput,
    RemoteBackendError,
)
from canvas.history.api_keys import ApiKeyStore
from canvas.models.hub_client import Hub
from canvas.request import GeneratedImage, ProgressUpdate
from canvas.server.discovery import write_server_file
from canvas.settings import Settings
from tests.app_server import serving
from tests.backends.router import TOKEN, Router, png, running

REQUEST = GenerationRequest("a fox, oil", model_key="small", width=512, height=256, seed=5, backend="hf-inference")


@pytest.fixture
def router() -> Iterator[Router]:
    with running() as router:
        yield router


def studio_with(settings: Settings, **changes: Any) -> Studio:
    values = {"provider_token": TOKEN, "provider": "nscale", **changes}
    return Studio(settings.model_copy(update=values))


def grant_consent(studio: Studio, request: GenerationRequest = REQUEST, owner: str = "local") -> None:
    studio.remote_backends.grant_consent(owner, request.backend, studio.models[request.model_key])


@pytest.fixture
def studio_with_provider(settings: Settings, router: Router) -> Iterator[Studio]:
    with studio_with(settings) as studio:
        yield studio


def test_nothing_is_sent_before_consent(studio_with_provider: Studio, router: Router) -> None:
    with pytest.raises(ConsentRequired) as raised:
        studio_with_provider.submit(REQUEST)
    for word in ("nscale", "stable-diffusion-v1-5/stable-diffusion-v1-5", "charged", "--accept-terms"):
        assert word in str(raised.value)
    assert router.requests == []
    grant_consent(studio_with_provider)
    with pytest.raises(ConsentRequired, match="dreamshaper"):  # prices depend on the model
        studio_with_provider.submit(replace(REQUEST, model_key="dreamshaper"))
    with pytest.raises(ConsentRequired):
        studio_with_provider.submit(REQUEST, owner="ann")
    assert router.requests == []
    assert studio_with_provider.jobs(None) == []


def test_request_to_the_provider_has_all_fields(studio_with_provider: Studio, router: Router) -> None:
    grant_consent(studio_with_provider)
    request = replace(REQUEST, num_images=2, negative_prompt="fog", style="cartoon", watermark="W")
    started = time.perf_counter()
    images = studio_with_provider.generate(request)
    assert 0 < sum(image.generation_time for image in images) <= time.perf_counter() - started
    assert len(router.posts()) == 2
    for number, (path, token, body) in enumerate(router.posts()):
        assert path == "/nscale/v1/images/generations"
        assert token == f"Bearer {TOKEN}"
        assert body["model"] == "sd/one"
        assert body["prompt"] == images[0].enhanced_prompt != request.prompt
        assert body["seed"] == 5 + number
        assert body["size"] == "512x256"
        assert "fog" in body["negative_prompt"]
    assert studio_with_provider.recent() == images[::-1]
    assert [image.device for image in images] == ["provider:nscale"] * 2
    assert images[1].request.seed == 6
    assert images[0].request.backend == "hf-inference"
    assert "provider chose" in images[0].notes[0]


@pytest.mark.parametrize("provider", ["auto", "hf-inference"])
def test_providers_auto_and_hf_inference(settings: Settings, router: Router, provider: str) -> None:
    with studio_with(settings, provider=provider) as studio:
        grant_consent(studio)
        [image] = studio.generate(REQUEST)
        with Image.open(studio.image_path(image.filename)) as opened:
            assert opened.getpixel((0, 0)) == (0x20, 0x40, 0x60)
    [(path, _, _)] = router.posts()
    assert path.startswith("/nscale/" if provider == "auto" else "/hf-inference/models/stable")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "rejected the token"),
        (402, "credits .* used up"),
        (403, "does not permit Inference Providers"),
        (404, r"not available from the inference provider \(nscale\)"),
        (410, r"no longer available from the inference provider \(nscale\)"),
        (422, "rejected the request: .*server message"),
        (429, "quota"),
        (499, "rejected the request: .*server message"),
        (500, "failed .status 500"),
        (503, "is busy"),
    ],
)
def test_error_status_raises_a_clear_message(
    studio_with_provider: Studio, router: Router, status: int, message: str
) -> None:
    grant_consent(studio_with_provider)
    router.status = status
    with pytest.raises(RemoteBackendError, match=message) as raised:
        studio_with_provider.generate(REQUEST)
    assert TOKEN not in str(raised.value)
    assert studio_with_provider.recent() == []


@pytest.mark.parametrize(("size", "is_scaled"), [((512, 256), False), ((256, 256), True)])
def test_an_image_of_another_size_is_scaled_and_noted(
    studio_with_provider: Studio, router: Router, size: tuple[int, int], is_scaled: bool
) -> None:
    grant_consent(studio_with_provider)
    router.body = png(size)
    [image] = studio_with_provider.generate(REQUEST)
    with Image.open(studio_with_provider.image_path(image.filename)) as opened:
        assert opened.size == (512, 256)
    assert ("The provider returned 256x256, scaled to 512x256." in image.notes) == is_scaled
    assert len(image.notes) == 1 + is_scaled


def test_a_cancelled_task_is_not_sent(router: Router) -> None:
    cancelled = threading.Event()
    cancelled.set()
    task = GenerationTask(REQUEST.with_defaults(MODELS["small"]), MODELS["small"])
    with pytest.raises(GenerationCancelled, match="before the request was sent"):
        next(inference_providers.generate(task, ProviderConfig(TOKEN, "nscale"), cancelled))
    assert router.requests == []


def test_a_provider_that_does_not_respond_is_an_error(
    studio_with_provider: Studio, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant_consent(studio_with_provider)
    monkeypatch.setattr(inference_providers, "TIMEOUT", 0.05)
    router.hold = True
    with pytest.raises(RemoteBackendError, match=r"inference provider \(nscale\) did not respond in time"):
        studio_with_provider.generate(REQUEST)


@pytest.mark.parametrize(("own", "login", "expected"), [(TOKEN, None, True), (None, TOKEN, True), (None, None, False)])
def test_a_token_is_that_of_the_settings_or_of_the_login(
    monkeypatch: pytest.MonkeyPatch, own: str | None, login: str | None, expected: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: login)
    assert ProviderConfig(own).has_token() is expected


def test_model_without_provider_is_an_error(studio_with_provider: Studio, router: Router) -> None:
    grant_consent(studio_with_provider)
    router.providers = {}
    with pytest.raises(RemoteBackendError, match=r"not available from the inference provider \(nscale\)"):
        studio_with_provider.generate(REQUEST)
    assert router.posts() == []


def test_response_without_image_is_an_error(studio_with_provider: Studio, router: Router) -> None:
    grant_consent(studio_with_provider)
    for body in (b"<html>", b""):
        router.body = body
        with pytest.raises(RemoteBackendError, match="returned no image"):
            studio_with_provider.generate(REQUEST)
    router.returns_base64 = False  # HTML where JSON is expected
    with pytest.raises(RemoteBackendError, match="returned no image"):
        studio_with_provider.generate(REQUEST)
    router.body = b'{"data": []}'
    with pytest.raises(RemoteBackendError, match="returned no image"):
        studio_with_provider.generate(REQUEST)


def test_unreachable_hub_is_an_error(studio_with_provider: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    grant_consent(studio_with_provider)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RemoteBackendError, match="cannot be reached"):
        studio_with_provider.generate(REQUEST)


@pytest.mark.slow
def test_remote_job_can_be_cancelled_and_does_not_block_local_jobs(
    studio_with_provider: Studio, router: Router
) -> None:
    grant_consent(studio_with_provider)
    router.hold = True
    job = studio_with_provider.submit(REQUEST)
    for update in job.subscribe(timeout=0.1):
        if router.posts():
            assert update.status == "running"
            assert studio_with_provider.generate(GenerationRequest("a fox", num_inference_steps=1))
            job.cancel()
            break
    with pytest.raises(GenerationCancelled, match="may be charged"):
        job.wait(30)


def test_nothing_is_sent_without_the_safety_checker(settings: Settings, router: Router, tmp_path: Path) -> None:
    offline = Hub(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache", timeout=2)
    changed = settings.model_copy(update={"provider_token": TOKEN, "provider": "nscale", "safety": "full"})
    with Studio(changed, hub=offline) as studio:
        grant_consent(studio)
        with pytest.raises(HubOffline):
            studio.generate(REQUEST)
    assert router.requests == []


@pytest.mark.parametrize("stored", [True, False])
def test_one_safety_checker_sees_all_remote_images(
    settings: Settings, router: Router, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    folders: list[str] = []

    def make_checker(device: Device, folder: str) -> ImageSafetyChecker:
        folders.append(folder)
        return cast("ImageSafetyChecker", folder)

    monkeypatch.setattr(safety, "find_checker", lambda hub: "stored" if stored else None)
    monkeypatch.setattr(safety, "fetch_checker", lambda *_, hub: "fetched")
    monkeypatch.setattr("canvas.backends.remote_backends.ImageSafetyChecker", make_checker)
    monkeypatch.setattr("canvas.backends.remote_backends.postprocess", lambda image, checker: checker and image)
    backends = RemoteBackends(settings.model_copy(update={"safety": "full", "provider_token": TOKEN}))
    task = GenerationTask(REQUEST.with_defaults(MODELS["small"]), MODELS["small"])
    for _ in range(2):
        assert all(backends.generate(task, lambda **_: None, threading.Event()))
    assert folders == ["stored" if stored else "fetched"]


def test_unsupported_request_is_rejected_at_once(settings: Settings, router: Router) -> None:
    with studio_with(settings) as studio:
        for changes, message in (
            ({"model_key": "starter", "width": 256, "height": 256}, "inference providers do not have"),
            ({"prompt_weighting": True}, "Prompt weighting must be off with an inference provider"),
            ({"backend": "remote"}, "CANVAS_REMOTE"),
        ):
            with pytest.raises(InvalidInput, match=message):
                studio.submit(replace(REQUEST, **changes))
    assert router.requests == []


def test_missing_token_is_an_error(
    settings: Settings, router: Router, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with studio_with(settings, provider_token=None) as studio:
        grant_consent(studio)
        with pytest.raises(InvalidInput, match="HF_TOKEN"):
            studio.submit(REQUEST)
    assert router.requests == []


def test_visitors_cannot_use_the_owners_token(settings: Settings, router: Router) -> None:
    visitor = "visitor-" + "0" * 32
    with studio_with(settings, public=True) as studio:
        grant_consent(studio, owner=visitor)
        with pytest.raises(ContentBlocked, match="owner of this server"):
            studio.submit(REQUEST, visitor)
        assert studio.remote_backends.available() == ["local"]
    assert router.requests == []
    with studio_with(settings, public=True, remote_for_visitors=True) as studio:
        with pytest.raises(ConsentRequired):
            studio.submit(REQUEST, visitor)
        grant_consent(studio, owner=visitor)
        assert studio.generate(REQUEST, visitor)


def test_settings_hide_secrets() -> None:
    environ = {"HF_TOKEN": TOKEN, "CANVAS_REMOTE_KEY": "mc-key"}
    settings = Settings.from_environment(environ)
    assert settings.provider_token == TOKEN
    assert TOKEN not in repr(settings)
    assert "mc-key" not in repr(settings)
    with pytest.raises(InvalidInput, match="CANVAS_REMOTE"):
        Settings.from_environment({"CANVAS_REMOTE": "gpu.local"})


# Another Magic Canvas

LOCAL_REQUEST = GenerationRequest("a fox in the snow, 3d", seed=7, num_inference_steps=2)
REMOTE_REQUEST = replace(LOCAL_REQUEST, backend="remote")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A public server, which requires an API key."""
    with serving(tmp_path_factory.mktemp("server"), public=True) as studio:
        studio.key = ApiKeyStore(studio.database).create("laptop")  # type: ignore[attr-defined]
        yield studio


@pytest.fixture
def client(settings: Settings, server: Studio) -> Iterator[Studio]:
    changes = {"remote": server.url, "remote_key": server.key}  # type: ignore[attr-defined]
    with Studio(settings.model_copy(update=changes)) as studio:
        studio.remote_backends.grant_consent("local", "remote", studio.models["starter"])
        yield studio


def pixels(studio: Studio, filename: str) -> Image.Image:
    with Image.open(studio.image_path(filename)) as file:
        return file.convert("RGB")


@pytest.mark.slow
def test_image_is_generated_remotely_and_saved_on_both_sides(client: Studio, server: Studio) -> None:
    job = client.submit(replace(REMOTE_REQUEST, num_images=2, image_format="webp"))
    steps = [update.progress for update in job.subscribe()]
    first, second = job.wait()
    server_second, server_first = server.recent("key-laptop")
    assert (first.request.seed, second.request.seed) == (7, 8)
    assert first.device == "remote:127.0.0.1"
    assert first.request.backend == "remote"
    assert server_first.request.backend == "local"
    assert server_first.device == "cpu"
    assert first.enhanced_prompt == server_first.enhanced_prompt
    assert any(isinstance(step, ProgressUpdate) for step in steps)
    assert client.recent() == [second, first]
    assert client.device_if_known is None  # nothing was computed locally
    assert server_second.request.seed == 8


@pytest.mark.slow
def test_remote_image_equals_local_image(client: Studio) -> None:
    [remote], [local] = client.generate(REMOTE_REQUEST), client.generate(LOCAL_REQUEST)
    difference = ImageChops.difference(pixels(client, remote.filename), pixels(client, local.filename))
    assert difference.getbbox() is None


@pytest.mark.slow
def test_source_image_is_uploaded(client: Studio) -> None:
    upload = client.inputs.upload(png((128, 128)))
    changes = {"task": "image_to_image", "image": upload.name, "strength": 0.5}
    [remote] = client.generate(replace(REMOTE_REQUEST, **changes))
    [local] = client.generate(replace(LOCAL_REQUEST, **changes))
    difference = ImageChops.difference(pixels(client, remote.filename), pixels(client, local.filename))
    assert difference.getbbox() is None


@pytest.mark.slow
def test_cancelling_cancels_the_remote_job(client: Studio, server: Studio) -> None:
    job = client.submit(replace(REMOTE_REQUEST, num_inference_steps=150, prompt="a whale", width=256, height=256))
    for update in job.subscribe():
        if isinstance(update.progress, ProgressUpdate):
            job.cancel()
    with pytest.raises(GenerationCancelled):
        job.wait()
    [remote_job] = [job for job in server.jobs("key-laptop") if job.request.prompt == "a whale"]
    with pytest.raises(GenerationCancelled):
        remote_job.wait(60)


@pytest.mark.slow
def test_invalid_key_and_unreachable_server_are_errors(settings: Settings, server: Studio) -> None:
    for changes, message in (
        ({"remote": server.url, "remote_key": "wrong"}, "rejected the API key"),  # type: ignore[attr-defined]
        ({"remote": "http://127.0.0.1:9"}, "cannot be reached"),
    ):
        with Studio(settings.model_copy(update=changes)) as studio:
            with pytest.raises(ConsentRequired, match="a copy in its own history"):
                studio.submit(REMOTE_REQUEST)
            studio.remote_backends.grant_consent("local", "remote", studio.models["starter"])
            with pytest.raises(RemoteBackendError, match=message):
                studio.generate(REMOTE_REQUEST)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (400, "cannot be reached"),
        (401, "rejected the API key"),
        (402, "cannot be reached"),
        (403, "rejected the API key"),
        (404, "cannot be reached"),
        (502, "cannot be reached"),
        (OSError("no route"), "cannot be reached"),
        (KeyError("/draw"), "not a Magic Canvas of a compatible version"),
        (AppError("Run `python -m canvas keys create`."), "rejected the API key"),
        (AppError("Out of memory."), r"reported an error: Out of memory\."),
        (AuthenticationError("Wrong."), "rejected the API key"),
        (QueueError("full"), "is busy"),
        (TooManyRequestsError("429"), "is busy"),
        (ValueError("Server stopped."), "lost before the image was complete"),
        (CancelledError(), "lost before the image was complete"),
    ],
)
def test_errors_of_another_magic_canvas_are_explained(error: Any, message: str) -> None:
    if isinstance(error, int):
        address = httpx.Request("GET", "http://canvas.example")
        error = httpx.HTTPStatusError("", request=address, response=httpx.Response(error, request=address))
    server = remote_canvas.RemoteServer("http://canvas.example:8000/secret")
    expected = f"^canvas.example.*{message}|^The connection to canvas.example .*{message}"
    with pytest.raises(RemoteBackendError, match=expected), remote_canvas._translate_errors(server):
        raise error


class StubClient:
    """In place of `gradio_client.Client`: its job has one more of `outputs` whenever it is asked."""

    def __init__(self, outputs: Iterable[list[dict[str, Any]]] = ()) -> None:
        self.options: dict[str, Any] = {}
        self.sent: list[dict[str, Any]] = []
        self.was_cancelled = self.was_closed = False
        self._new = list(outputs)
        self._outputs: list[tuple[None, dict[str, Any]]] = []

    def __call__(self, url: str, **options: Any) -> StubClient:
        self.options = options
        self._file = Path(options["download_files"], "image.png")
        self._file.write_bytes(png((256, 256)))
        return self

    def submit(self, fields: dict[str, Any], *_: Any, api_name: str) -> StubClient:
        self.sent.append(fields)
        return self

    def done(self) -> bool:
        return not self._new

    def outputs(self) -> list[Any]:
        self._outputs += [(None, progress) for progress in self._new.pop(0)]
        return list(self._outputs)

    def result(self) -> tuple[str, dict[str, Any]]:
        settings = {"enhanced_prompt": "a fox", "generation_time": 2.5, "dtype": "float32", "model_revision": "r"}
        return str(self._file), {**settings, "notes": ["A note."], "device": "cpu"}

    def cancel(self) -> None:
        self.was_cancelled = True

    def close(self) -> None:
        self.was_closed = True


def step(number: int) -> dict[str, Any]:
    return {"step": number, "num_steps": 4, "seconds_left": 1.0}


def generate_with(
    client: StubClient, monkeypatch: pytest.MonkeyPatch, cancelled: threading.Event | None = None, **changes: Any
) -> tuple[list[GeneratedImage], list[tuple[int, int, int]]]:
    """The images of the stub, and each reported step with its image and the number of images."""
    steps: list[tuple[int, int, int]] = []

    def on_progress(*, step: ProgressUpdate) -> None:
        steps.append((step.step, step.image_index, step.num_images))
        if cancelled is not None:
            cancelled.set()

    monkeypatch.setattr("gradio_client.Client", client)
    monkeypatch.setattr(remote_canvas, "POLL_INTERVAL", 0)
    request = replace(REMOTE_REQUEST, **changes).with_defaults(MODELS["starter"])
    server = remote_canvas.RemoteServer("http://canvas.example:8000")
    task = GenerationTask(request, MODELS["starter"])
    return list(remote_canvas.generate(task, server, on_progress, cancelled or threading.Event())), steps


def test_the_latest_step_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = StubClient([[step(1), step(2)], [], [step(3)], [{"position": 1}]])
    [image], steps = generate_with(client, monkeypatch)
    assert [number for number, _, _ in steps] == [2, 3]
    assert client.was_closed
    assert (image.generation_time, image.device, image.dtype) == (2.5, "remote:canvas.example", "float32")
    assert image.notes == ("A note.", "Generated by canvas.example on its cpu.")


def test_steps_have_the_number_of_their_image(monkeypatch: pytest.MonkeyPatch) -> None:
    client = StubClient([[step(1)]])
    images, steps = generate_with(client, monkeypatch, num_images=2)
    assert steps == [(1, 0, 2)]
    assert [image.request.seed for image in images] == [fields["seed"] for fields in client.sent] == [7, 8]


def test_a_remote_job_is_cancelled_between_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    client = StubClient([[step(1)], [step(2)]])
    with pytest.raises(GenerationCancelled):
        generate_with(client, monkeypatch, threading.Event())
    assert client.was_cancelled
    assert client.was_closed


def test_nothing_is_sent_to_another_magic_canvas_after_a_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    client, cancelled = StubClient(), threading.Event()
    cancelled.set()
    with pytest.raises(GenerationCancelled):
        generate_with(client, monkeypatch, cancelled)
    assert client.sent == []


def test_the_token_of_the_hub_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    client = StubClient()
    generate_with(client, monkeypatch)
    assert client.options["token"] is False
    assert client.options["headers"] == {}
    assert client.options["analytics_enabled"] is False


@pytest.mark.parametrize("scale_to_size", [True, False])
def test_old_servers_get_no_field_that_they_do_not_know(monkeypatch: pytest.MonkeyPatch, scale_to_size: bool) -> None:
    client = StubClient()
    generate_with(client, monkeypatch, scale_to_size=scale_to_size)
    [fields] = client.sent
    assert ("scale_to_size" in fields) == scale_to_size
    assert not {"control_images", "reference_images"} & set(fields)


class Proxy(socketserver.ThreadingTCPServer):
    """A TCP proxy whose connections can be closed."""

    daemon_threads = True

    def __init__(self, to: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.to = to
        self.sockets: list[socket.socket] = []

    def disconnect(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in self.sockets:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)


class ProxyHandler(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with socket.create_connection(self.server.to) as upstream:
            self.server.sockets += [self.request, upstream]
            back = threading.Thread(target=forward, args=(upstream, self.request), daemon=True)
            back.start()
            forward(self.request, upstream)
            back.join()


def forward(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            to.sendall(chunk)
    with suppress(OSError):
        to.shutdown(socket.SHUT_WR)


def test_lost_connection_is_an_error(settings: Settings, server: Studio) -> None:
    port = urlsplit(server.url).port  # type: ignore[attr-defined]
    proxy = Proxy(("127.0.0.1", port))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    changes = {"remote": f"http://127.0.0.1:{proxy.server_address[1]}", "remote_key": server.key}  # type: ignore[attr-defined]
    with Studio(settings.model_copy(update=changes)) as studio:
        studio.remote_backends.grant_consent("local", "remote", studio.models["starter"])
        job = studio.submit(replace(REMOTE_REQUEST, num_inference_steps=150, width=256, height=256))
        for update in job.subscribe():
            if isinstance(update.progress, ProgressUpdate):
                proxy.disconnect()
                break
        with pytest.raises(RemoteBackendError, match=r"connection to 127\.0\.0\.1 was lost"):
            job.wait(60)


@pytest.mark.slow
def test_error_of_the_server_is_quoted(client: Studio) -> None:
    client.models["own"] = replace(client.models["starter"], key="own")
    client.remote_backends.grant_consent("local", "remote", client.models["own"])
    with pytest.raises(RemoteBackendError, match=r"127\.0\.0\.1 reported an error: Model must be one of starter.*own"):
        client.generate(replace(REMOTE_REQUEST, model_key="own"))


@pytest.mark.slow
def test_cli_generates_remotely(
    client: Studio, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = client.settings
    monkeypatch.setenv("CANVAS_REMOTE", settings.remote or "")
    monkeypatch.setenv("CANVAS_REMOTE_KEY", settings.remote_key or "")
    write_server_file(settings.data_dir, "http://127.0.0.1:9/")  # no server over this folder
    line = ["generate", "a boat", "--steps", "1", "--backend", "remote", "--json"]
    line += ["--data-dir", str(settings.data_dir)]
    with pytest.raises(SystemExit) as exited:
        cli.main(line)
    assert exited.value.code == 1
    assert "--accept-terms" in capfd.readouterr().err
    with pytest.raises(SystemExit) as exited:
        cli.main([*line, "--accept-terms"])
    assert not exited.value.code
    assert json.loads(capfd.readouterr().out)["device"] == "remote:127.0.0.1"
