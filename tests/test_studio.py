from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from canvas import GenerationRequest, Studio
from canvas.errors import (
    CanvasError,
    GenerationCancelled,
    InvalidInput,
    NotFound,
    StorageError,
    UnknownModel,
)
from canvas.request import ProgressUpdate
from canvas.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
FOX = GenerationRequest("a fox in the snow, 3d", seed=7, num_inference_steps=2)


def pixels(studio: Studio, filename: str) -> Image.Image:
    with Image.open(studio.image_path(filename)) as picture:
        return picture.convert("RGB")


def test_prompt_to_picture_to_history(studio: Studio, settings: Settings) -> None:
    job = studio.submit(FOX)
    seen = list(job.subscribe())
    assert seen[-1].status == "done"
    assert isinstance(job.progress, ProgressUpdate)
    [picture] = job.wait()
    assert picture.request == FOX.with_defaults(studio.models["starter"])
    assert (settings.data_dir / picture.filepath).is_file()
    assert studio.recent() == [picture]
    rows = sqlite3.connect(settings.database_path).execute(
        "select model_name, event, status from model_downloads"
    )
    assert rows.fetchall() == [("starter", "load", "complete")]


def test_a_picture_of_a_batch_can_be_made_again_alone(studio: Studio) -> None:
    batch = GenerationRequest("a fox", seed=7, num_inference_steps=2, num_images=2)
    second = studio.generate(batch)[1]
    again = studio.generate(second.request)[0]
    assert second.request.seed == 8
    difference = ImageChops.difference(
        pixels(studio, second.filename), pixels(studio, again.filename)
    )
    assert difference.getbbox() is None


def test_a_job_waiting_is_taken_out_and_a_running_one_stops(studio: Studio) -> None:
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


def test_what_is_wrong_is_said_before_anything_is_queued(studio: Studio) -> None:
    with pytest.raises(UnknownModel, match="starter"):
        studio.submit(GenerationRequest("a fox", model_key="nothing"))
    with pytest.raises(InvalidInput, match="width"):
        studio.submit(GenerationRequest("a fox", width=1024))
    assert studio.jobs("local") == []


def test_owners_see_their_own(studio: Studio) -> None:
    job = studio.submit(FOX, owner="ann")
    [picture] = job.wait()
    assert picture.id is not None
    assert studio.recent("bob") == []
    assert studio.jobs("bob") == []
    with pytest.raises(NotFound):
        studio.job(job.id, "bob")
    with pytest.raises(NotFound):
        studio.image(picture.id, "bob")
    assert studio.image(picture.id, "ann") == picture


def test_a_picture_path_is_no_way_to_other_files(studio: Studio) -> None:
    for name in ("../ai_images.db", "/etc/passwd", "", "\0", "%2e%2e/ai_images.db", "nothing.png"):
        with pytest.raises(NotFound):
            studio.image_path(name)


def test_a_broken_model_fails_in_words_and_the_next_request_works(
    studio: Studio, tmp_path: Path
) -> None:
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
    assert str(tmp_path / "broken") in str(caught.value)
    assert studio.generate(FOX)


def test_the_state_of_a_model_is_told(studio: Studio) -> None:
    assert studio.model_status("starter").location == "disk"
    assert "to download" in studio.model_status("small").text
    studio.generate(FOX)
    assert studio.model_status("starter").text.startswith("in memory")
    assert "a picture here" in studio.model_status("starter").text
    assert studio.unload_model("starter")
    assert studio.model_status("starter").location == "disk"


def test_the_users_models_are_read_at_the_start(settings: Settings) -> None:
    settings.data_dir.mkdir()
    settings.models_file.write_text(
        '[mine]\nname = "a/b"\nsize = "1 GB"\nspeed = "Fast"\nquality = "Good"\n'
        'resolution = 512\ntype = "auto"\n'
    )
    with Studio(settings) as studio:
        assert studio.models["mine"].name == "a/b"
    settings.models_file.write_text('[mine]\nname = "a/b"\nsteps = 4\n')
    with pytest.raises(InvalidInput, match=r"mine\.steps"):
        Studio(settings)


def test_an_unusable_data_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="data_dir"):
        Studio(Settings(data_dir=tmp_path / "file"))


def test_a_database_that_is_none_is_left_alone(settings: Settings) -> None:
    settings.data_dir.mkdir()
    settings.database_path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StorageError, match=r"ai_images\.db"):
        Studio(settings)
    assert settings.database_path.read_bytes() == b"not a database" * 1000


def test_pictures_outlive_the_studio(settings: Settings) -> None:
    with Studio(settings) as studio:
        [picture] = studio.generate(FOX)
    with Studio(settings) as studio:
        assert studio.recent() == [picture]


def test_what_a_dead_server_left_is_offered_again(settings: Settings) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from canvas import GenerationRequest, Studio\n"
        "from canvas.settings import Settings\n"
        "studio = Studio(Settings.from_environment({}, data_dir=sys.argv[1]))\n"
        "studio.submit(GenerationRequest('an owl', num_inference_steps=150), owner='ann')\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(settings.data_dir)], cwd=ROOT, check=False)
    with Studio(settings) as studio:
        [left] = studio.interrupted_jobs("ann")
        assert left.request.prompt == "an owl"
        assert studio.interrupted_jobs("bob") == []
        with pytest.raises(NotFound):
            studio.resume_job(left.id, "bob")
        job = studio.resume_job(left.id, "ann")
        assert studio.interrupted_jobs("ann") == []
        assert job.request == left.request
        job.cancel()


def test_what_warms_up_ends_with_the_studio(settings: Settings) -> None:
    before = set(threading.enumerate())
    with Studio(settings) as studio:
        studio.warm_up()
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) <= before
