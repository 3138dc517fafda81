from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import webuiapi
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.api.a1111 import A1111Api
from canvas.api.a1111_bodies import TextToImage, Unsupported, Upscale
from canvas.errors import ContentBlocked
from canvas.jobs.job import Job
from canvas.request import ProgressUpdate

INVALID: list[tuple[dict[str, Any], int, str]] = [
    ({"prompt": ""}, 400, "Prompt"),
    ({"prompt": "a\x00b"}, 400, "control characters"),
    ({"width": 7, "height": 256}, 400, "Width"),
    ({"width": 10**9, "height": 256}, 400, "(got 1000000000)"),
    ({"steps": 0}, 400, "Steps"),
    ({"steps": "many"}, 400, "Steps must be a valid integer (got 'many')."),
    ({"batch_size": 1000}, 400, "Batch size must be less than or equal to 16 (got 1000)."),
    ({"batch_size": 16, "n_iter": 16}, 400, "Number of images"),
    ({"seed": -2}, 400, "Seed"),
    ({"sampler_name": "magic"}, 400, "one of DPM++ 2M"),
    ({"override_settings": {"sd_model_checkpoint": "nope"}}, 404, "starter"),
]


@pytest.fixture
def client(url: str) -> Iterator[webuiapi.WebUIApi]:
    host, _, port = url.removeprefix("http://").partition(":")
    client = webuiapi.WebUIApi(host=host, port=int(port), steps=2)
    yield client
    client.session.close()


@pytest.mark.slow
def test_webuiapi_generates_images(client: webuiapi.WebUIApi, served: Studio) -> None:
    result = client.txt2img(prompt="a red boat", negative_prompt="fog", seed=31, batch_size=2)
    second, first = served.recent(limit=2)
    assert result.info["all_seeds"] == [31, 32] == [first.request.seed, second.request.seed]
    assert result.info["negative_prompt"] == "fog"
    assert result.info["sampler_name"] == "Euler a"
    for content, image in zip(result.json["images"], (first, second), strict=True):
        assert base64.b64decode(content) == served.image_path(image.filename).read_bytes()
    assert result.parameters["prompt"] == "a red boat"
    for image in result.images:
        image.close()


@pytest.mark.slow
def test_png_info_returns_the_embedded_settings(client: webuiapi.WebUIApi) -> None:
    result = client.txt2img(prompt="a green boat", seed=33)
    body = {"image": result.json["images"][0]}
    info = httpx.post(f"{client.baseurl}/png-info", json=body).json()
    assert info["info"] == result.info["infotexts"][0]
    assert info["parameters"]["seed"] == 33
    result.image.close()


@pytest.mark.parametrize("image", ["", "!", "data:image/png;base64,AAAA", "QUJD"])
def test_png_info_rejects_other_data(url: str, image: str) -> None:
    response = httpx.post(f"{url}/sdapi/v1/png-info", json={"image": image})
    assert response.status_code == 400
    assert "PNG, JPEG or WebP" in response.json()["detail"]


def test_lists(client: webuiapi.WebUIApi) -> None:
    assert "starter" in client.util_get_model_names()
    assert "Euler a" in client.util_get_sampler_names()
    assert client.util_get_scheduler_names() == ["automatic", "karras"]
    assert client.get_memory()["ram"]["total"] > 0
    assert client.get_cmd_flags() == {}
    assert "lanczos" in [upscaler["name"] for upscaler in client.get_upscalers()]
    for empty_list in (client.get_loras, client.get_sd_vae):
        assert empty_list() == []


def test_options_select_the_model(client: webuiapi.WebUIApi) -> None:
    client.util_set_model("tiny")
    assert client.util_get_current_model() == "tiny"
    client.util_set_model("starter")
    assert client.util_get_current_model() == "starter"
    options = {"sd_model_checkpoint": "nope"}
    assert client.session.post(f"{client.baseurl}/options", json=options).status_code == 404
    assert client.util_get_current_model() == "starter"


@pytest.mark.parametrize(("values", "status", "message"), INVALID)
def test_invalid_values_are_explained_in_detail(
    url: str, served: Studio, values: dict[str, Any], status: int, message: str
) -> None:
    before = served.recent()
    response = httpx.post(f"{url}/sdapi/v1/txt2img", json={"prompt": "a fox", **values})
    assert response.status_code == status
    assert message in response.json()["detail"]
    assert served.recent() == before


def test_progress_and_interrupt(client: webuiapi.WebUIApi, served: Studio) -> None:
    responses: list[dict[str, Any]] = []
    body = {"prompt": "a long way", "steps": 150}

    def generate() -> None:
        responses.append(httpx.post(f"{client.baseurl}/txt2img", json=body, timeout=120).json())

    thread = threading.Thread(target=generate)
    thread.start()
    job = None
    while job is None:
        jobs = served.jobs("local")
        job = next((job for job in jobs if job.request.prompt == "a long way"), None)
    for _ in job.subscribe(timeout=60):
        if job.progress is not None:
            break
    progress = client.get_progress()
    assert 0 < progress["progress"] < 1
    assert progress["state"]["sampling_steps"] == 150
    assert progress["state"]["job_count"] == 1
    client.interrupt()
    thread.join(60)
    assert job.status == "cancelled"
    assert responses[0]["images"] == []
    client.util_wait_for_ready(check_interval=0.1)


def test_requests_of_open_webui(url: str) -> None:
    # In its order, see backend/open_webui/routers/images.py.
    with httpx.Client(base_url=f"{url}/sdapi/v1", timeout=60) as client:
        options = client.get("/options").json()
        first, *_ = client.get("/sd-models").json()
        assert (first["title"], first["model_name"]) == ("starter", "starter")
        options["sd_model_checkpoint"] = first["title"]
        assert client.post("/options", json=options).json() is None
        body = {"prompt": "a boat", "batch_size": 1, "width": 512, "height": 512, "steps": 2}
        result = client.post("/txt2img", json=body).json()
    assert base64.b64decode(result["images"][0]).startswith(b"\x89PNG")
    assert json.loads(result["info"])["prompt"] == "a boat"


def test_requests_of_sillytavern(url: str) -> None:
    # In its order, see src/endpoints/stable-diffusion.js.
    headers = {"Authorization": "Basic Og=="}  # sent even without a password
    with httpx.Client(base_url=f"{url}/sdapi/v1", timeout=60, headers=headers) as client:
        assert client.get("/options").status_code == 200
        for path in ("upscalers", "latent-upscale-modes", "sd-vae", "samplers", "schedulers"):
            assert isinstance(client.get(f"/{path}").json(), list)
        assert client.get("/sd-models").json()[0]["title"]
        assert client.post("/options", json={"sd_model_checkpoint": "starter"}).status_code == 200
        assert client.get("/progress").json()["state"]["job_count"] == 0
        body = {
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
        result = client.post("/txt2img", json=body).json()
        assert client.post("/interrupt").status_code == 200
    assert json.loads(result["info"])["sampler_name"] == "DPM++ 2M Karras"
    assert len(result["images"]) == 1


@pytest.mark.parametrize(("hr_scale", "scale"), [(None, 2), (0, 2), (2, 2), (4.0, 4)])
def test_the_second_pass_of_hires_fix_doubles_or_quadruples(hr_scale: float | None, scale: int) -> None:
    body = TextToImage(prompt="a fox", enable_hr=True, hr_scale=hr_scale)
    assert body.to_hires_request(GenerationRequest("a fox"))["scale"] == scale


@pytest.mark.parametrize("fields", [{"hr_scale": 1.5}, {"hr_scale": 2, "hr_resize_x": 1024}])
def test_other_sizes_of_hires_fix_are_refused(fields: dict[str, Any]) -> None:
    body = TextToImage(prompt="a fox", enable_hr=True, **fields)
    with pytest.raises(Unsupported):
        body.to_hires_request(GenerationRequest("a fox"))


@pytest.mark.parametrize(("upscaling_resize", "scale"), [(None, 2), (0, 2), (2, 2), (4.0, 4)])
def test_upscaling_doubles_or_quadruples(upscaling_resize: float | None, scale: int) -> None:
    body = Upscale(upscaling_resize=upscaling_resize)
    assert body.to_request("starter", "fox.png").scale == scale


@pytest.fixture
def jobs(served: Studio, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs of all owners: one that is done, one that waits, one that runs and one that loads."""
    jobs = [Job("local", "generate", "starter", GenerationRequest("a fox")) for _ in range(4)]
    for job, status in zip(jobs, ("done", "queued", "running", "loading"), strict=True):
        job.update(status=status)
    monkeypatch.setattr(served, "jobs", lambda owner: jobs)
    return jobs


def test_progress_is_that_of_the_running_job(url: str, jobs: list[Job]) -> None:
    _, _, running, _ = jobs
    preview = Image.new("RGB", (8, 8))
    running.progress = ProgressUpdate(5, 20, image_index=1, num_images=2, seconds_left=7.5)
    running.preview = preview
    body = httpx.get(f"{url}/sdapi/v1/progress").json()
    assert (body["progress"], body["eta_relative"], body["textinfo"]) == (0.625, 7.5, "running")
    assert base64.b64decode(body["current_image"]).startswith(b"\x89PNG")
    assert body["state"] == {
        **{"skipped": False, "interrupted": False, "stopping_generation": False},
        **{"job": running.id, "job_count": 3, "job_timestamp": f"{running.created_at:%Y%m%d%H%M%S}"},
        **{"job_no": 1, "sampling_step": 5, "sampling_steps": 20},
    }
    running.cancelled.set()
    body = httpx.get(f"{url}/sdapi/v1/progress?skip_current_image=true").json()
    assert (body["current_image"], body["state"]["interrupted"]) == (None, True)


def test_progress_without_a_running_job_is_zero(url: str, jobs: list[Job]) -> None:
    del jobs[2:]
    body = httpx.get(f"{url}/sdapi/v1/progress").json()
    assert (body["progress"], body["eta_relative"], body["current_image"], body["textinfo"]) == (0, 0, None, None)
    assert body["state"] == {
        **{"skipped": False, "interrupted": False, "stopping_generation": False},
        **{"job": "", "job_count": 1, "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0},
    }
    jobs[1].update(status="loading")
    assert httpx.get(f"{url}/sdapi/v1/progress").json()["state"]["sampling_steps"] == 0


def test_interrupt_cancels_what_runs_but_not_what_waits(url: str, jobs: list[Job]) -> None:
    assert httpx.post(f"{url}/sdapi/v1/interrupt").json() == {}
    assert [job.cancelled.is_set() for job in jobs] == [False, False, True, True]


@pytest.mark.parametrize("images", [None, [], ["a", "b"]])
def test_img2img_takes_one_image(url: str, images: list[str] | None) -> None:
    response = httpx.post(f"{url}/sdapi/v1/img2img", json={"prompt": "a fox", "init_images": images})
    assert response.status_code == 400
    assert f"a list with one image in base64 (got {len(images or ())})" in response.json()["detail"]


@pytest.mark.parametrize(
    ("settings", "owner", "allowed"),
    [
        ({"is_public": False, "admin": None}, "local", True),
        ({"is_public": True, "admin": "ann"}, "ann", True),
        ({"is_public": True, "admin": "ann"}, "visitor", False),
        ({"is_public": True, "admin": None}, "visitor", False),
    ],
)
def test_visitors_cannot_unload_models(settings: dict[str, Any], owner: str, allowed: bool) -> None:
    unloaded: list[str] = []
    studio: Any = SimpleNamespace(settings=SimpleNamespace(model="starter", **settings), unload_model=unloaded.append)
    request: Any = SimpleNamespace(state=SimpleNamespace(owner=owner, api_allowed=True))
    if allowed:
        assert A1111Api(studio).unload_checkpoint(request).status_code == 200
    else:
        with pytest.raises(ContentBlocked):
            A1111Api(studio).unload_checkpoint(request)
    assert unloaded == ["starter"] * allowed


def test_what_is_not_implemented_says_so(url: str) -> None:
    for path in ("skip", "interrogate"):
        assert httpx.post(f"{url}/sdapi/v1/{path}").status_code == 501
    for path in ("refresh-checkpoints", "reload-checkpoint"):
        assert httpx.post(f"{url}/sdapi/v1/{path}").json() == {}
    schema = httpx.get(f"{url}/openapi.json").json()["paths"]
    answers = {method: schema["/sdapi/v1/options"][method]["responses"]["200"] for method in ("get", "post")}
    assert answers["post"]["content"]["application/json"]["schema"] == {"type": "null"}
    assert "$ref" in answers["get"]["content"]["application/json"]["schema"]
