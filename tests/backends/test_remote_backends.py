"""Pictures by an inference provider (the real client against a stand-in) and by another server."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants
from PIL import Image, ImageChops

from canvas import GenerationRequest, Studio
from canvas.cli import main as cli
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
from canvas.request import ProgressUpdate
from canvas.server.discovery import write_server_file
from canvas.settings import Settings
from tests.app_server import serving
from tests.backends.router import TOKEN, Router, png, running

WISH = GenerationRequest(
    "a fox, oil", model_key="small", width=512, height=256, seed=5, backend="huggingface"
)


@pytest.fixture
def router() -> Iterator[Router]:
    with running() as router:
        yield router


def studio_with(settings: Settings, **changes: Any) -> Studio:
    return Studio(replace(settings, **{"provider_token": TOKEN, "provider": "nscale", **changes}))


def agreed(studio: Studio, wish: GenerationRequest = WISH, owner: str = "local") -> None:
    studio.remote_backends.grant_consent(owner, wish.backend, studio.models[wish.model_key])


@pytest.fixture
def provided(settings: Settings, router: Router) -> Iterator[Studio]:
    with studio_with(settings) as studio:
        yield studio


def test_nothing_is_sent_before_the_user_agrees(provided: Studio, router: Router) -> None:
    with pytest.raises(ConsentRequired) as refused:
        provided.submit(WISH)
    for word in ("nscale", "stable-diffusion-v1-5/stable-diffusion-v1-5", "charged", "--agree"):
        assert word in str(refused.value)
    assert router.asked == []
    agreed(provided)
    with pytest.raises(ConsentRequired, match="dreamshaper"):  # another model has another price
        provided.submit(replace(WISH, model_key="dreamshaper"))
    with pytest.raises(ConsentRequired):
        provided.submit(WISH, owner="ann")
    assert router.asked == []
    assert provided.jobs(None) == []


def test_the_call_holds_what_was_asked_for(provided: Studio, router: Router) -> None:
    agreed(provided)
    wish = replace(WISH, num_images=2, negative_prompt="fog", style="cartoon", watermark="W")
    pictures = provided.generate(wish)
    assert len(router.posts()) == 2
    for number, (path, token, body) in enumerate(router.posts()):
        assert path == "/nscale/v1/images/generations"
        assert token == f"Bearer {TOKEN}"
        assert body["model"] == "sd/one"
        assert body["prompt"] == pictures[0].enhanced_prompt != wish.prompt
        assert body["seed"] == 5 + number
        assert body["size"] == "512x256"
        assert "fog" in body["negative_prompt"]
    assert provided.recent() == pictures[::-1]
    assert [picture.device for picture in pictures] == ["provider:nscale"] * 2
    assert pictures[1].request.seed == 6
    assert pictures[0].request.backend == "huggingface"
    assert "provider chose" in pictures[0].notes[0]


@pytest.mark.parametrize("provider", ["auto", "hf-inference"])
def test_other_ways_through_the_router(settings: Settings, router: Router, provider: str) -> None:
    with studio_with(settings, provider=provider) as studio:
        agreed(studio)
        [picture] = studio.generate(WISH)
        with Image.open(studio.image_path(picture.filename)) as image:
            assert image.getpixel((0, 0)) == (0x20, 0x40, 0x60)
    [(path, _, _)] = router.posts()
    assert path.startswith("/nscale/" if provider == "auto" else "/hf-inference/models/stable")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "does not take the token"),
        (402, "credits .* used up"),
        (403, "may not use Inference Providers"),
        (404, "not served by nscale"),
        (422, "refuses this request: .*it says"),
        (429, "quota"),
        (500, "fault of its own .status 500"),
        (503, "too busy"),
    ],
)
def test_refusals_are_told_in_words(
    provided: Studio, router: Router, status: int, sentence: str
) -> None:
    agreed(provided)
    router.status = status
    with pytest.raises(RemoteBackendError, match=sentence) as refused:
        provided.generate(WISH)
    assert TOKEN not in str(refused.value)
    assert provided.recent() == []


def test_a_model_that_nobody_serves_is_said(provided: Studio, router: Router) -> None:
    agreed(provided)
    router.providers = {}
    with pytest.raises(RemoteBackendError, match="not served by nscale"):
        provided.generate(WISH)
    assert router.posts() == []


def test_what_is_no_picture_is_said(provided: Studio, router: Router) -> None:
    agreed(provided)
    for body in (b"<html>", b""):
        router.body = body
        with pytest.raises(RemoteBackendError, match="sent no picture"):
            provided.generate(WISH)
    router.answers_in_base64 = False  # HTML where JSON is expected
    with pytest.raises(RemoteBackendError, match="sent no picture"):
        provided.generate(WISH)
    router.body = b'{"data": []}'
    with pytest.raises(RemoteBackendError, match="sent no picture"):
        provided.generate(WISH)


def test_an_address_that_nobody_answers_is_said(
    provided: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed(provided)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RemoteBackendError, match="cannot be reached"):
        provided.generate(WISH)


def test_a_job_elsewhere_is_stopped_and_holds_up_nobody(provided: Studio, router: Router) -> None:
    agreed(provided)
    router.hold = True
    away = provided.submit(WISH)
    for seen in away.subscribe(timeout=0.1):
        if router.posts():
            assert seen.status == "running"
            assert provided.generate(GenerationRequest("a fox", num_inference_steps=1))
            away.cancel()
            break
    with pytest.raises(GenerationCancelled, match="may be charged"):
        away.wait(30)


def test_without_its_checker_nothing_is_asked_for(
    settings: Settings, router: Router, tmp_path: Path
) -> None:
    nowhere = Hub(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache", timeout=2)
    full = replace(settings, provider_token=TOKEN, provider="nscale", safety="full")
    with Studio(full, hub=nowhere) as studio:
        agreed(studio)
        with pytest.raises(HubOffline):
            studio.generate(WISH)
    assert router.asked == []


def test_what_cannot_be_asked_is_said_at_once(settings: Settings, router: Router) -> None:
    with studio_with(settings) as studio:
        for changes, sentence in (
            ({"model_key": "starter", "width": 256, "height": 256}, "served nowhere"),
            ({"prompt_weighting": True}, "prompt_weighting"),
            ({"backend": "remote"}, "CANVAS_REMOTE"),
        ):
            with pytest.raises(InvalidInput, match=sentence):
                studio.submit(replace(WISH, **changes))
    assert router.asked == []


def test_without_a_token_it_is_said(
    settings: Settings, router: Router, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with studio_with(settings, provider_token=None) as studio:
        agreed(studio)
        with pytest.raises(InvalidInput, match="HF_TOKEN"):
            studio.submit(WISH)
    assert router.asked == []


def test_visitors_do_not_spend_the_owners_token(settings: Settings, router: Router) -> None:
    visitor = "visitor-" + "0" * 32
    with studio_with(settings, public=True) as studio:
        agreed(studio, owner=visitor)
        with pytest.raises(ContentBlocked, match="owner of this server"):
            studio.submit(WISH, visitor)
        assert studio.remote_backends.available() == ["here"]
    assert router.asked == []
    with studio_with(settings, public=True, remote_for_visitors=True) as studio:
        with pytest.raises(ConsentRequired):
            studio.submit(WISH, visitor)
        agreed(studio, owner=visitor)
        assert studio.generate(WISH, visitor)


def test_the_settings_hide_their_secrets() -> None:
    environ = {"HF_TOKEN": TOKEN, "CANVAS_REMOTE_KEY": "mc-key"}
    settings = Settings.from_environment(environ)
    assert settings.provider_token == TOKEN
    assert TOKEN not in repr(settings)
    assert "mc-key" not in repr(settings)
    with pytest.raises(InvalidInput, match="CANVAS_REMOTE"):
        Settings.from_environment({"CANVAS_REMOTE": "gpu.local"})


# Another Magic Canvas

HERE = GenerationRequest("a fox in the snow, 3d", seed=7, num_inference_steps=2)
THERE = replace(HERE, backend="remote")


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A server that strangers can reach, so that it asks for a key."""
    with serving(tmp_path_factory.mktemp("far"), public=True) as studio:
        studio.key = ApiKeyStore(studio.database).create("laptop")  # type: ignore[attr-defined]
        yield studio


@pytest.fixture
def near(settings: Settings, far: Studio) -> Iterator[Studio]:
    changes = {"remote": far.url, "remote_key": far.key}  # type: ignore[attr-defined]
    with Studio(replace(settings, **changes)) as studio:
        studio.remote_backends.grant_consent("local", "remote", studio.models["starter"])
        yield studio


def pixels(studio: Studio, filename: str) -> Image.Image:
    with Image.open(studio.image_path(filename)) as picture:
        return picture.convert("RGB")


def test_the_other_makes_it_and_both_keep_it(near: Studio, far: Studio) -> None:
    job = near.submit(replace(THERE, num_images=2, image_format="webp"))
    steps = [seen.progress for seen in job.subscribe()]
    first, second = job.wait()
    kept_second, kept_first = far.recent("key-laptop")
    assert (first.request.seed, second.request.seed) == (7, 8)
    assert first.device == "remote:127.0.0.1"
    assert first.request.backend == "remote"
    assert kept_first.request.backend == "here"
    assert kept_first.device == "cpu"
    assert first.enhanced_prompt == kept_first.enhanced_prompt
    assert any(isinstance(step, ProgressUpdate) for step in steps)
    assert near.recent() == [second, first]
    assert near.device_if_known is None  # nothing was computed here
    assert kept_second.request.seed == 8


def test_the_pixels_are_the_same_there_and_here(near: Studio) -> None:
    [there], [here] = near.generate(THERE), near.generate(HERE)
    difference = ImageChops.difference(pixels(near, there.filename), pixels(near, here.filename))
    assert difference.getbbox() is None


def test_a_picture_is_sent_to_start_from(near: Studio) -> None:
    handed = near.inputs.upload(png((128, 128)))
    changes = {"task": "image_to_image", "image": handed.name, "strength": 0.5}
    [there] = near.generate(replace(THERE, **changes))
    [here] = near.generate(replace(HERE, **changes))
    difference = ImageChops.difference(pixels(near, there.filename), pixels(near, here.filename))
    assert difference.getbbox() is None


def test_stopping_stops_it_there_too(near: Studio, far: Studio) -> None:
    job = near.submit(
        replace(THERE, num_inference_steps=150, prompt="a whale", width=256, height=256)
    )
    for seen in job.subscribe():
        if isinstance(seen.progress, ProgressUpdate):
            job.cancel()
    with pytest.raises(GenerationCancelled):
        job.wait()
    [theirs] = [job for job in far.jobs("key-laptop") if job.request.prompt == "a whale"]
    with pytest.raises(GenerationCancelled):
        theirs.wait(60)


def test_a_refused_key_and_a_dead_address_are_said(settings: Settings, far: Studio) -> None:
    for changes, sentence in (
        ({"remote": far.url, "remote_key": "wrong"}, "refuses the key"),  # type: ignore[attr-defined]
        ({"remote": "http://127.0.0.1:9"}, "cannot be reached"),
    ):
        with Studio(replace(settings, **changes)) as studio:
            with pytest.raises(ConsentRequired, match="a copy in its own history"):
                studio.submit(THERE)
            studio.remote_backends.grant_consent("local", "remote", studio.models["starter"])
            with pytest.raises(RemoteBackendError, match=sentence):
                studio.generate(THERE)


class Wire(socketserver.ThreadingTCPServer):
    """Stands between two machines, until it is cut."""

    daemon_threads = True

    def __init__(self, to: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), WireEnd)
        self.to = to
        self.ends: list[socket.socket] = []

    def cut(self) -> None:
        self.shutdown()
        self.server_close()
        for end in self.ends:
            with suppress(OSError):  # closed already
                end.shutdown(socket.SHUT_RDWR)


class WireEnd(socketserver.BaseRequestHandler):
    server: Wire

    def handle(self) -> None:
        with socket.create_connection(self.server.to) as there:
            self.server.ends += [self.request, there]
            back = threading.Thread(target=pass_on, args=(there, self.request), daemon=True)
            back.start()
            pass_on(self.request, there)
            back.join()


def pass_on(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            to.sendall(chunk)
    with suppress(OSError):
        to.shutdown(socket.SHUT_WR)


def test_a_machine_that_goes_away_is_said(settings: Settings, far: Studio) -> None:
    port = urlsplit(far.url).port  # type: ignore[attr-defined]
    wire = Wire(("127.0.0.1", port))
    threading.Thread(target=wire.serve_forever, daemon=True).start()
    changes = {"remote": f"http://127.0.0.1:{wire.server_address[1]}", "remote_key": far.key}  # type: ignore[attr-defined]
    with Studio(replace(settings, **changes)) as studio:
        studio.remote_backends.grant_consent("local", "remote", studio.models["starter"])
        job = studio.submit(replace(THERE, num_inference_steps=150, width=256, height=256))
        for seen in job.subscribe():
            if isinstance(seen.progress, ProgressUpdate):
                wire.cut()
                break
        with pytest.raises(RemoteBackendError, match="went away"):
            job.wait(60)


def test_what_the_other_refuses_is_said_in_its_words(near: Studio) -> None:
    near.models["own"] = replace(near.models["starter"], key="own")
    near.remote_backends.grant_consent("local", "remote", near.models["own"])
    with pytest.raises(RemoteBackendError, match=r"127\.0\.0\.1 says: .*own.*one of starter"):
        near.generate(replace(THERE, model_key="own"))


def test_the_command_line_takes_it(
    near: Studio, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = near.settings
    monkeypatch.setenv("CANVAS_REMOTE", settings.remote or "")
    monkeypatch.setenv("CANVAS_REMOTE_KEY", settings.remote_key or "")
    write_server_file(settings.data_dir, "http://127.0.0.1:9/")  # no server over this folder
    line = ["generate", "a boat", "--steps", "1", "--where", "remote", "--json"]
    line += ["--data-dir", str(settings.data_dir)]
    with pytest.raises(SystemExit) as leaving:
        cli.main(line)
    assert leaving.value.code == 1
    assert "--agree" in capfd.readouterr().err
    with pytest.raises(SystemExit) as leaving:
        cli.main([*line, "--agree"])
    assert not leaving.value.code
    assert json.loads(capfd.readouterr().out)["device"] == "remote:127.0.0.1"
