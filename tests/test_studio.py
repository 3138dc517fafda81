from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from canvas import GenerationRequest, Studio
from canvas.errors import (
    CanvasError,
    GenerationCancelled,
    InvalidInput,
    NotFound,
    RemoteBackendError,
    StorageError,
    UnknownModel,
)
from canvas.jobs.scheduler import REMOTE_CONCURRENCY
from canvas.models import controlnets
from canvas.models.addons import ADDONS, DEPTH
from canvas.models.hub_client import Hub
from canvas.request import REMOTE, ProgressUpdate
from canvas.settings import Settings
from canvas.studio import OLD_NAMES
from tests.hub_server import LocalHub

ROOT = Path(__file__).resolve().parent.parent
FOX = GenerationRequest("a fox in the snow, 3d", seed=7, num_inference_steps=2)


def pixels(studio: Studio, filename: str) -> Image.Image:
    with Image.open(studio.image_path(filename)) as image:
        return image.convert("RGB")


def test_a_generation_is_stored_and_logged(studio: Studio, settings: Settings) -> None:
    job = studio.submit(FOX)
    seen = list(job.subscribe())
    assert seen[-1].status == "done"
    assert isinstance(job.progress, ProgressUpdate)
    [image] = job.wait()
    assert image.request == FOX.with_defaults(studio.models["starter"])
    assert (settings.data_dir / image.filepath).is_file()
    assert studio.recent() == [image]
    rows = sqlite3.connect(settings.database_path).execute("select model_name, event, status from model_downloads")
    assert rows.fetchall() == [("starter", "load", "complete")]


@pytest.mark.slow
def test_the_record_says_what_the_built_in_model_understood(studio: Studio) -> None:
    [image] = studio.generate(replace(FOX, prompt="a bearded puppy in the snow"))
    assert (image.request.prompt, image.enhanced_prompt) == ("a bearded puppy in the snow", "a dog in the snow 1 left")
    assert image.notes == ("Understood: a dog (from puppy), in the snow. Not known: bearded.",)
    assert studio.recent()[0].notes == image.notes
    [plain] = studio.generate(replace(FOX, prompt="a dog in the snow"))
    assert plain.notes == ()
    difference = ImageChops.difference(pixels(studio, image.filename), pixels(studio, plain.filename))
    assert difference.getbbox() is None


@pytest.mark.slow
def test_an_edited_image_of_the_built_in_model_keeps_its_arrangement(studio: Studio) -> None:
    [image] = studio.generate(FOX)
    *_, arrangement = image.enhanced_prompt.partition("in the snow")
    assert arrangement
    for task in ({"task": "image_to_image", "strength": 0.6}, {"task": "inpaint", "outpaint": (0, 32, 0, 0)}):
        request = replace(FOX, prompt="an owl in the forest", seed=1, image=image.filename, **task)
        [edited] = studio.generate(request)
        assert edited.enhanced_prompt == f"an owl in the forest{arrangement}"
        [again] = studio.generate(replace(request, image=edited.filename))
        assert again.enhanced_prompt == edited.enhanced_prompt
    [upscaled] = studio.generate(replace(FOX, task="upscale", scale=2, upscaler="lanczos", image=image.filename))
    request = replace(FOX, prompt="an owl in the forest", task="image_to_image", strength=0.6, image=upscaled.filename)
    [edited] = studio.generate(request)
    assert edited.enhanced_prompt == f"an owl in the forest{arrangement}"
    upload = studio.inputs.upload(Image.new("RGB", (256, 256), "green"))
    [unrelated] = studio.generate(replace(FOX, task="image_to_image", strength=0.6, image=upload.name))
    assert unrelated.enhanced_prompt == "a fox in the snow"


def test_a_prompt_of_unknown_words_is_answered_with_a_model_that_fits(studio: Studio) -> None:
    [image] = studio.generate(replace(FOX, prompt="zxcv qwerty"))
    status = studio.general_model()
    assert status is not None
    spec = status.spec
    assert spec.key in image.notes[-1]
    assert "knows none of these words" in image.notes[-1]
    assert spec.size in image.notes[-1]


def test_an_image_of_a_batch_can_be_generated_again_alone(studio: Studio) -> None:
    batch = GenerationRequest("a fox", seed=7, num_inference_steps=2, num_images=2)
    second = studio.generate(batch)[1]
    again = studio.generate(second.request)[0]
    assert second.request.seed == 8
    difference = ImageChops.difference(pixels(studio, second.filename), pixels(studio, again.filename))
    assert difference.getbbox() is None


def test_cancel_a_waiting_and_a_running_job(studio: Studio) -> None:
    running = studio.submit(GenerationRequest("a fox", num_inference_steps=150))
    waiting = studio.submit(FOX)
    assert studio.queue_position(waiting) <= 1
    waiting.cancel()
    for job in running.subscribe():
        if isinstance(job.progress, ProgressUpdate):
            job.cancel()
    assert (running.status, waiting.status) == ("cancelled", "cancelled")
    with pytest.raises(GenerationCancelled):
        running.wait()
    assert studio.recent() == []
    assert studio.generate(FOX)  # the next request works


def test_invalid_requests_are_not_queued(studio: Studio) -> None:
    with pytest.raises(UnknownModel, match="starter"):
        studio.submit(GenerationRequest("a fox", model_key="nothing"))
    with pytest.raises(InvalidInput, match="Width"):
        studio.submit(GenerationRequest("a fox", width=1024))
    assert studio.jobs("local") == []


def test_jobs_and_images_of_other_owners_are_not_found(studio: Studio) -> None:
    job = studio.submit(FOX, owner="ann")
    [image] = job.wait()
    assert image.id is not None
    assert studio.recent("bob") == []
    assert studio.jobs("bob") == []
    with pytest.raises(NotFound):
        studio.job(job.id, "bob")
    with pytest.raises(NotFound):
        studio.image(image.id, "bob")
    assert studio.image(image.id, "ann") == image


def test_image_path_rejects_other_files(studio: Studio) -> None:
    for name in ("../ai_images.db", "/etc/passwd", "", "\0", "%2e%2e/ai_images.db", "nothing.png"):
        with pytest.raises(NotFound):
            studio.image_path(name)


def test_a_broken_model_fails_and_the_next_job_works(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    studio.models["broken"] = {
        "name": str(tmp_path / "broken"),
        "size": "0 GB",
        "speed": "",
        "quality": "",
        "resolution": 128,
        "type": "stable_diffusion",
    }
    with pytest.raises(CanvasError) as caught:
        studio.generate(GenerationRequest("a fox", model_key="broken"))
    assert "broken is no diffusers pipeline" in str(caught.value)
    assert studio.generate(FOX)


def test_model_status_follows_download_and_memory(studio: Studio) -> None:
    assert studio.model_status("starter").location == "disk"
    assert "2.1 GB download" in studio.model_status("small").text
    studio.generate(FOX)
    assert studio.model_status("starter").text.startswith("in memory")
    assert "per image on this computer" in studio.model_status("starter").text
    assert studio.unload_model("starter")
    assert studio.model_status("starter").location == "disk"


def test_models_toml_is_loaded_at_the_start(settings: Settings) -> None:
    settings.data_dir.mkdir()
    settings.models_file.write_text(
        '[mine]\nname = "a/b"\nsize = "1 GB"\nspeed = "Fast"\nquality = "Good"\nresolution = 512\ntype = "auto"\n'
    )
    with Studio(settings) as studio:
        assert studio.models["mine"].name == "a/b"
    settings.models_file.write_text('[mine]\nname = "a/b"\nsteps = 4\n')
    with pytest.raises(InvalidInput, match=r"models\.mine\.steps is unknown"):
        Studio(settings)


def test_an_unusable_data_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"data folder .*--data-dir"):
        Studio(Settings(data_dir=tmp_path / "file"))


def test_a_file_that_is_not_a_database_is_not_overwritten(settings: Settings) -> None:
    settings.data_dir.mkdir()
    settings.database_path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StorageError, match=r"ai_images\.db"):
        Studio(settings)
    assert settings.database_path.read_bytes() == b"not a database" * 1000


def test_images_are_persistent(settings: Settings) -> None:
    with Studio(settings) as studio:
        [image] = studio.generate(FOX)
    with Studio(settings) as studio:
        assert studio.recent() == [image]


def test_jobs_of_a_killed_process_can_be_resumed(settings: Settings) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from canvas import GenerationRequest, Studio\n"
        "from canvas.settings import Settings\n"
        "studio = Studio(Settings.from_environment({}, data_dir=sys.argv[1]))\n"
        "studio.submit(GenerationRequest('an owl', num_inference_steps=150), owner='ann')\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(settings.data_dir)], cwd=ROOT, check=False)
    with Studio(settings) as studio:
        [pending] = studio.interrupted_jobs("ann")
        assert pending.request.prompt == "an owl"
        assert studio.interrupted_jobs("bob") == []
        with pytest.raises(NotFound):
            studio.resume_job(pending.id, "bob")
        job = studio.resume_job(pending.id, "ann")
        assert studio.interrupted_jobs("ann") == []
        assert job.request == pending.request
        job.cancel()


def test_a_studio_can_be_closed_while_a_thread_starts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    studio, errors, start = Studio(settings), list[Exception](), threading.Thread.start

    def close() -> None:
        try:
            studio.close()
        except RuntimeError as error:
            errors.append(error)

    closing = threading.Thread(target=close)

    def start_slowly(thread: threading.Thread) -> None:
        if thread.name == "canvas-warm-up":
            closing.start()
            closing.join(0.5)  # until it has closed, or waits for this thread
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_slowly)
    studio.warm_up()
    closing.join()
    assert errors == []
    assert "canvas-warm-up" not in {thread.name for thread in threading.enumerate()}


def test_warm_up_threads_end_with_the_studio(settings: Settings) -> None:
    before = set(threading.enumerate())
    with Studio(settings) as studio:
        studio.warm_up()
        assert set(threading.enumerate()) > before
    studio.warm_up()
    assert set(threading.enumerate()) <= before


PROCESS_STATE = """
import ctypes, os, sys, threading
from pathlib import Path
from unittest.mock import patch
before = dict(os.environ)
from canvas import GenerationRequest, Studio
from canvas.settings import Settings
settings = Settings(data_dir=Path(sys.argv[1]), device="cpu", dtype="float32", engine="torch")
with patch("ctypes.CDLL", side_effect=AssertionError("mallopt")), Studio(settings):
    print(os.environ == before, [thread.name for thread in threading.enumerate()])
"""


def test_a_studio_changes_nothing_in_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS_STATE, str(tmp_path)]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True ['MainThread']", done.stderr


def test_threads_start_with_the_first_job_that_needs_them(settings: Settings) -> None:
    earlier = set(threading.enumerate())  # of studios that other tests served

    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread not in earlier and "canvas-" in thread.name]

    with Studio(settings.model_copy(update={"remote": "http://127.0.0.1:9"})) as studio:
        assert names() == []
        studio.generate(FOX)
        assert names() == ["canvas-generate"]
        studio.remote_backends.grant_consent("local", REMOTE, studio.models["starter"])
        with pytest.raises(RemoteBackendError):
            studio.generate(replace(FOX, backend=REMOTE))
        assert names() == ["canvas-generate"] + ["canvas-remote"] * REMOTE_CONCURRENCY
    assert names() == []


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_names_work_with_a_warning(studio: Studio, name: str) -> None:
    studio_of_old: Any = studio
    with pytest.warns(DeprecationWarning, match=rf"Studio\.{name} is now Studio\.{OLD_NAMES[name]}"):
        assert getattr(studio_of_old, name) == getattr(studio, OLD_NAMES[name])
    assert name not in dir(studio)


def test_unknown_names_raise_attribute_error(studio: Studio) -> None:
    with pytest.raises(AttributeError, match="brush"):
        _ = studio.brush  # type: ignore[attr-defined]


def test_the_downloads_of_guidance_are_added_up(settings: Settings, hub: LocalHub, tmp_path: Path) -> None:
    source = Hub(endpoint=hub.url, cache_dir=tmp_path / "hub", timeout=5)
    with Studio(settings, hub=source) as studio:
        controlnet = controlnets.download_size(studio.usual_controlnet("canny", "dreamshaper"))
        depth = controlnets.download_size(studio.usual_controlnet("depth", "dreamshaper"))
        assert controlnet and depth
        assert studio.control_download_size("canny", "dreamshaper") == controlnet
        assert studio.control_download_size("depth", "dreamshaper", detect=False) == depth
        assert studio.control_download_size("depth", "dreamshaper") == depth + ADDONS[DEPTH].size
