from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from canvas import GenerationRequest, Studio

PUBLIC = [
    "prompt",
    "negative_prompt",
    "model_key",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "seed",
    "style",
    "num_images",
    "where",
]
ENDPOINTS = {
    "/generate",
    "/edit",
    "/upscale",
    "/models",
    "/download_model",
    "/history",
    "/image",
    "/status",
    "/cancel",
    "/recent_pictures",
    "/picture",
}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt: ''"),
    ({"prompt": "   "}, "prompt: ''"),
    ({"prompt": "x" * 100_000}, "at most 10,000 characters"),
    ({"prompt": "a\x00b"}, "without control characters"),
    ({"prompt": 7}, "prompt: 7"),
    ({"width": 0}, "width: 0"),
    ({"width": 7}, "width: 7"),
    ({"width": 513}, "512 or 520"),
    ({"height": 10**9}, "height: 1000000000"),
    ({"width": "NaN"}, "width: 'NaN'"),
    ({"num_inference_steps": 0}, "num_inference_steps: 0"),
    ({"guidance_scale": -1}, "guidance_scale: -1"),
    ({"num_images": 1000}, "num_images: 1000"),
    ({"seed": -2}, "seed: -2"),
    ({"seed": 2**64}, "seed: 18446744073709551616"),
    ({"seed": "abc"}, "seed: 'abc'"),
    ({"model_key": "nope"}, "one of starter, tiny"),
    ({"model_key": None}, "model_key: None"),
    ({"style": "baroque"}, "one of none, photorealistic"),
]


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("client")))


def test_the_parameters_have_names_and_types(client: Client) -> None:
    endpoint = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    parameters = endpoint["/generate"]["parameters"]
    assert [parameter["parameter_name"] for parameter in parameters] == PUBLIC
    assert all(parameter["python_type"]["type"] for parameter in parameters)
    assert [item["parameter_name"] for item in parameters if not item["parameter_has_default"]] == [
        "prompt"
    ]


def test_only_what_is_meant_for_programs_is_published(client: Client) -> None:
    api = client.view_api(return_format="dict", print_info=False)
    assert set(api["named_endpoints"]) == ENDPOINTS
    assert not api["unnamed_endpoints"]


def test_a_picture_comes_back_as_it_was_kept(client: Client, served: Studio) -> None:
    picture, settings = client.predict(
        "a red boat", num_inference_steps=2, seed=7, api_name="/generate"
    )
    [kept] = served.recent(limit=1)
    assert Path(picture).read_bytes() == served.image_path(kept.filename).read_bytes()
    with Image.open(picture) as image:
        assert "a red boat" in image.info["parameters"]
    assert settings["seed"] == 7
    assert settings["num_inference_steps"] == 2
    assert settings["ids"] == [kept.id]
    assert settings["pictures"] == [picture]


def test_a_batch_has_a_file_each(client: Client, served: Studio) -> None:
    _, settings = client.predict(
        "a tree", num_inference_steps=1, seed=3, num_images=2, api_name="/generate"
    )
    first, second = map(pixels, settings["pictures"])
    assert first != second
    [alone] = served.generate(GenerationRequest("a tree", num_inference_steps=1, seed=4))
    assert pixels(served.image_path(alone.filename)) == second


@pytest.mark.parametrize(("values", "sentence"), BAD)
def test_bad_input_is_answered_in_a_sentence(
    client: Client, served: Studio, values: dict[str, Any], sentence: str
) -> None:
    before = served.recent()
    with pytest.raises(AppError) as error:
        client.predict(**{"prompt": "a fox", **values}, api_name="/generate")
    assert sentence in str(error.value)
    assert served.recent() == before


def test_progress_streams(client: Client) -> None:
    job = client.submit("a house", num_inference_steps=4, seed=1, api_name="/generate")
    updates = [settings for _, settings in job]
    running = [update for update in updates if update.get("status") == "running"]
    assert [update["step"] for update in running if "step" in update][-1:] != []
    assert updates[-1]["seed"] == 1


def test_a_cancelled_call_stops_the_job(client: Client, served: Studio) -> None:
    call = client.submit("a house", num_inference_steps=150, api_name="/generate")
    for _, update in call:
        job = served.job(update["job_id"], "local")
        if job.status == "running":
            call.cancel()
            break
    for _ in job.subscribe(timeout=60):
        if job.finished:
            break
    assert job.status == "cancelled"


def test_a_client_that_hangs_up_stops_the_job(url: str, served: Studio) -> None:
    data = {"data": ["a house", "", "starter", None, None, 150, None, -1, "none", 1]}
    call = httpx.post(f"{url}/gradio_api/call/generate", json=data).json()["event_id"]
    with httpx.stream("GET", f"{url}/gradio_api/call/generate/{call}", timeout=60) as stream:
        next(stream.iter_lines())
    [job] = [job for job in served.jobs("local") if job.request.num_inference_steps == 150][-1:]
    for _ in job.subscribe(timeout=60):
        if job.finished:
            break
    assert job.status == "cancelled"


def test_two_clients_are_served_in_order(url: str, served: Studio) -> None:
    ended: list[str] = []

    def ask(prompt: str, asked: threading.Event) -> None:
        client = Client(url, verbose=False, download_files=False)
        job = client.submit(prompt, num_inference_steps=2, api_name="/generate")
        for _, update in job:
            assert update.get("prompt", prompt) == prompt
            asked.set()
        ended.append(prompt)

    threads = []
    for prompt in ("first boat", "second boat"):
        asked = threading.Event()
        threads.append(threading.Thread(target=ask, args=(prompt, asked)))
        threads[-1].start()
        assert asked.wait(60)
    for thread in threads:
        thread.join(60)
    assert ended == ["first boat", "second boat"]


def test_the_models_are_listed(client: Client) -> None:
    models = {model["model_key"]: model for model in client.predict(api_name="/models")}
    assert models["starter"]["resolution"] == 256
    assert models["small"]["state"]
