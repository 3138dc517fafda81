from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import webuiapi

from canvas import Studio

BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"prompt": ""}, 400, "prompt: ''"),
    ({"prompt": "a\x00b"}, 400, "without control characters"),
    ({"width": 7, "height": 256}, 400, "width: 7"),
    ({"width": 10**9, "height": 256}, 400, "width: 1000000000"),
    ({"steps": 0}, 400, "num_inference_steps: 0"),
    ({"steps": "many"}, 400, "steps: 'many'"),
    ({"batch_size": 1000}, 400, "batch_size: 1000"),
    ({"batch_size": 16, "n_iter": 16}, 400, "num_images: 256"),
    ({"seed": -2}, 400, "seed: -2"),
    ({"sampler_name": "magic"}, 400, "one of DPM++ 2M"),
    ({"override_settings": {"sd_model_checkpoint": "nope"}}, 404, "one of starter"),
]


@pytest.fixture
def client(served: Studio, url: str) -> Iterator[webuiapi.WebUIApi]:
    host, _, port = url.removeprefix("http://").partition(":")
    client = webuiapi.WebUIApi(host=host, port=int(port), steps=2)
    yield client
    client.session.close()


def test_the_package_makes_pictures_unchanged(client: webuiapi.WebUIApi, served: Studio) -> None:
    result = client.txt2img(prompt="a red boat", negative_prompt="fog", seed=31, batch_size=2)
    newest, older = served.recent(limit=2)
    assert result.info["all_seeds"] == [31, 32] == [older.request.seed, newest.request.seed]
    assert result.info["negative_prompt"] == "fog"
    assert result.info["sampler_name"] == "Euler a"
    for content, kept in zip(result.json["images"], (older, newest), strict=True):
        assert base64.b64decode(content) == served.image_path(kept.filename).read_bytes()
    assert result.parameters["prompt"] == "a red boat"
    for image in result.images:
        image.close()


def test_settings_are_read_from_a_picture(client: webuiapi.WebUIApi) -> None:
    made = client.txt2img(prompt="a green boat", seed=33)
    told = httpx.post(f"{client.baseurl}/png-info", json={"image": made.json["images"][0]}).json()
    assert told["info"] == made.info["infotexts"][0]
    assert told["parameters"]["seed"] == 33
    made.image.close()


@pytest.mark.parametrize("image", ["", "!", "data:image/png;base64,AAAA", "QUJD"])
def test_what_is_no_picture_has_no_settings(url: str, image: str) -> None:
    answer = httpx.post(f"{url}/sdapi/v1/png-info", json={"image": image})
    assert answer.status_code == 400
    assert "PNG, JPEG or WebP" in answer.json()["detail"]


def test_what_there_is_is_listed(client: webuiapi.WebUIApi) -> None:
    assert "starter" in client.util_get_model_names()
    assert "Euler a" in client.util_get_sampler_names()
    assert client.util_get_scheduler_names() == ["automatic", "karras"]
    assert client.get_memory()["ram"]["total"] > 0
    assert client.get_cmd_flags() == {}
    assert "lanczos" in [upscaler["name"] for upscaler in client.get_upscalers()]
    for listed in (client.get_loras, client.get_sd_vae):
        assert listed() == []


def test_a_model_is_chosen_by_its_name(client: webuiapi.WebUIApi) -> None:
    client.util_set_model("tiny")
    assert client.util_get_current_model() == "tiny"
    client.util_set_model("starter")
    assert client.util_get_current_model() == "starter"
    answer = client.session.post(f"{client.baseurl}/options", json={"sd_model_checkpoint": "nope"})
    assert answer.status_code == 404
    assert client.util_get_current_model() == "starter"


@pytest.mark.parametrize(("values", "status", "sentence"), BAD)
def test_bad_input_is_told_in_detail(
    url: str, served: Studio, values: dict[str, Any], status: int, sentence: str
) -> None:
    before = served.recent()
    answer = httpx.post(f"{url}/sdapi/v1/txt2img", json={"prompt": "a fox", **values})
    assert answer.status_code == status
    assert sentence in answer.json()["detail"]
    assert served.recent() == before


def test_a_running_job_is_watched_and_interrupted(
    client: webuiapi.WebUIApi, served: Studio
) -> None:
    answers: list[dict[str, Any]] = []
    body = {"prompt": "a long way", "steps": 150}

    def ask() -> None:
        answers.append(httpx.post(f"{client.baseurl}/txt2img", json=body, timeout=120).json())

    asking = threading.Thread(target=ask)
    asking.start()
    job = None
    while job is None:
        job = next(
            (job for job in served.jobs("local") if job.request.prompt == "a long way"), None
        )
    for _ in job.subscribe(timeout=60):
        if job.progress is not None:
            break
    progress = client.get_progress()
    assert 0 < progress["progress"] < 1
    assert progress["state"]["sampling_steps"] == 150
    assert progress["state"]["job_count"] == 1
    client.interrupt()
    asking.join(60)
    assert job.status == "cancelled"
    assert answers[0]["images"] == []
    client.util_wait_for_ready(check_interval=0.1)


def test_open_webui_connects_switches_and_paints(url: str) -> None:
    # What Open WebUI sends, in its order (backend/open_webui/routers/images.py).
    with httpx.Client(base_url=f"{url}/sdapi/v1", timeout=60) as client:
        options = client.get("/options").json()
        titles = [
            (model["title"], model["model_name"]) for model in client.get("/sd-models").json()
        ]
        assert titles[0] == ("starter", "starter")
        options["sd_model_checkpoint"] = titles[0][0]
        assert client.post("/options", json=options).json() is None
        wish = {"prompt": "a boat", "batch_size": 1, "width": 512, "height": 512, "steps": 2}
        answer = client.post("/txt2img", json=wish).json()
    assert base64.b64decode(answer["images"][0]).startswith(b"\x89PNG")
    assert json.loads(answer["info"])["prompt"] == "a boat"


def test_sillytavern_connects_and_paints(url: str) -> None:
    # What SillyTavern sends, in its order (src/endpoints/stable-diffusion.js).
    headers = {"Authorization": "Basic Og=="}  # it sends one also where there is no password
    with httpx.Client(base_url=f"{url}/sdapi/v1", timeout=60, headers=headers) as client:
        assert client.get("/options").status_code == 200
        for path in ("upscalers", "latent-upscale-modes", "sd-vae", "samplers", "schedulers"):
            assert isinstance(client.get(f"/{path}").json(), list)
        assert client.get("/sd-models").json()[0]["title"]
        assert client.post("/options", json={"sd_model_checkpoint": "starter"}).status_code == 200
        assert client.get("/progress").json()["state"]["job_count"] == 0
        wish = {
            "prompt": "a boat",
            "negative_prompt": "",
            "sampler_name": "DPM++ 2M",
            "scheduler": "Karras",
            "steps": 2,
            "cfg_scale": 7,
            "width": 256,
            "height": 256,
            "seed": -1,
            "restore_faces": False,
            "enable_hr": False,
            "override_settings": {},
            "override_settings_restore_afterwards": True,
            "clip_skip": 1,
            "save_images": True,
            "send_images": True,
            "do_not_save_grid": False,
            "do_not_save_samples": False,
            "url": url,
            "auth": "",
        }
        assert "forge_preset" not in client.get("/options").json()
        answer = client.post("/txt2img", json=wish).json()
        assert client.post("/interrupt").status_code == 200  # what its Stop sends
    assert json.loads(answer["info"])["sampler_name"] == "DPM++ 2M Karras"
    assert len(answer["images"]) == 1
