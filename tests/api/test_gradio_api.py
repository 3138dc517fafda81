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
from canvas.api.gradio_signatures import client_of
from canvas.history.metadata import read_text
from canvas.request import OLD_FIELD_NAMES
from tests.app_server import wait_until_finished

PARAMETERS = [
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
    "backend",
    "where",
    *("scheduler", "preset", "image_format", "quality", "loras", "prompt_weighting", "watermark"),
    *("variation_seed", "variation_strength", "scale_to_size", "control_images", "reference_images"),
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
INVALID: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "Prompt"),
    ({"prompt": "   "}, "Prompt"),
    ({"prompt": "x" * 100_000}, "at most 10,000 characters"),
    ({"prompt": "a\x00b"}, "control characters"),
    ({"prompt": 7}, "(got 7)"),
    ({"width": 0}, "Width"),
    ({"width": 7}, "Width"),
    ({"width": 513}, "a multiple of 8"),
    ({"height": 10**9}, "(got 1000000000)"),
    ({"width": "NaN"}, "(got 'NaN')"),
    ({"num_inference_steps": 0}, "Steps"),
    ({"guidance_scale": -1}, "Guidance"),
    ({"num_images": 1000}, "Number of images"),
    ({"seed": -2}, "(got -2)"),
    ({"seed": 2**64}, "(got 18446744073709551616)"),
    ({"seed": "abc"}, "(got 'abc')"),
    ({"model_key": "nope"}, "one of starter, "),
    ({"style": "baroque"}, "one of none, photorealistic"),
    ({"backend": "moon"}, "one of local, hf-inference, remote"),
]


def pixels_of(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("client")))


def test_parameters_have_names_and_types(client: Client) -> None:
    endpoint = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    parameters = endpoint["/generate"]["parameters"]
    assert [parameter["parameter_name"] for parameter in parameters] == PARAMETERS
    assert all(parameter["python_type"]["type"] for parameter in parameters)
    assert [item["parameter_name"] for item in parameters if not item["parameter_has_default"]] == ["prompt"]


def test_only_the_api_functions_are_published(client: Client) -> None:
    api = client.view_api(return_format="dict", print_info=False)
    assert set(api["named_endpoints"]) == ENDPOINTS
    assert not api["unnamed_endpoints"]


def test_generate_returns_the_stored_file(client: Client, served: Studio) -> None:
    file, settings = client.predict("a red boat", num_inference_steps=2, seed=7, api_name="/generate")
    [image] = served.recent(limit=1)
    assert Path(file).read_bytes() == served.image_path(image.filename).read_bytes()
    assert "a red boat" in read_text(Path(file))["parameters"]
    assert settings["seed"] == 7
    assert settings["num_inference_steps"] == 2
    assert settings["ids"] == [image.id]
    assert settings["pictures"] == [file]


def test_settings_have_the_old_field_names_too(client: Client, served: Studio) -> None:
    file, settings = client.predict("old names", num_inference_steps=1, api_name="/generate")
    [listed, *_] = client.predict(limit=1, api_name="/history")
    for answer in (settings, listed):
        for old, new in OLD_FIELD_NAMES.items():
            assert old in answer, f"{old}, now {new}"
        assert answer["channel"] == answer["client"] == "gradio"
    embedded = read_text(Path(file))
    assert not any(f'"{old}"' in text for text in embedded.values() for old in OLD_FIELD_NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("values", [{"where": "here"}, {"where": "local"}, {"backend": "here"}, {"backend": "local"}])
def test_the_backend_has_its_old_name_and_values_too(client: Client, served: Studio, values: dict[str, str]) -> None:
    client.predict("a fox", num_inference_steps=1, **values, api_name="/generate")
    assert served.recent(limit=1)[0].request.backend == "local"


def test_the_old_name_of_the_backend_takes_effect(client: Client) -> None:
    with pytest.raises(AppError, match="Backend"):
        client.predict("a fox", where="moon", api_name="/generate")
    with pytest.raises(AppError, match="Inference Providers"):
        client.predict("a fox", where="huggingface", api_name="/generate")


@pytest.mark.parametrize("header", ["x-canvas-client", "x-canvas-door"])
def test_the_client_header_has_its_old_name_too(header: str) -> None:
    request: Any = httpx.Request("POST", "http://localhost", headers={header: "mcp"})
    assert client_of(request) == "mcp"
    request = httpx.Request("POST", "http://localhost", headers={header: "page"})
    assert client_of(request) == "gradio"


@pytest.mark.slow
def test_a_batch_has_a_file_per_image(client: Client, served: Studio) -> None:
    _, settings = client.predict("a tree", num_inference_steps=1, seed=3, num_images=2, api_name="/generate")
    first, second = map(pixels_of, settings["pictures"])
    assert first != second
    [image] = served.generate(GenerationRequest("a tree", num_inference_steps=1, seed=4))
    assert pixels_of(served.image_path(image.filename)) == second


@pytest.mark.parametrize(("values", "message"), INVALID)
def test_invalid_values_are_explained(client: Client, served: Studio, values: dict[str, Any], message: str) -> None:
    before = served.recent()
    with pytest.raises(AppError) as error:
        client.predict(**{"prompt": "a fox", **values}, api_name="/generate")
    assert message in str(error.value)
    assert served.recent() == before


def test_progress_is_streamed(client: Client) -> None:
    job = client.submit("a house", num_inference_steps=4, seed=1, api_name="/generate")
    updates = [settings for _, settings in job]
    running = [update for update in updates if update.get("status") == "running"]
    assert any("step" in update for update in running)
    assert updates[-1]["seed"] == 1


def test_cancelling_a_call_cancels_the_job(client: Client, served: Studio) -> None:
    call = client.submit("a house", num_inference_steps=150, api_name="/generate")
    for _, update in call:
        job = served.job(update["job_id"], "local")
        if job.status == "running":
            call.cancel()
            break
    assert wait_until_finished(job) == "cancelled"


def test_a_client_that_disconnects_cancels_the_job(url: str, served: Studio) -> None:
    data = ["a gradio client disconnects", "", "starter", None, None, 150, None, -1, "none", 1, "local", None]
    with httpx.stream("GET", event_url(url, data), timeout=60) as response:
        for line in response.iter_lines():
            if "job_id" in line:
                break
    [job] = [job for job in served.jobs("local") if job.request.prompt == "a gradio client disconnects"]
    assert wait_until_finished(job) == "cancelled"


@pytest.mark.parametrize("backend", ["here", "local"])
def test_positional_calls_of_earlier_versions(url: str, served: Studio, backend: str) -> None:
    """Without the parameter that was added at the end."""
    data = [f"positional {backend}", "", "starter", None, None, 1, None, -1, "none", 1, backend]
    events = httpx.get(event_url(url, data), timeout=60).text
    assert "event: complete" in events
    assert served.recent(limit=1)[0].request.prompt == f"positional {backend}"


def test_none_is_the_default(url: str, served: Studio) -> None:
    """HTTP clients that know no default send null for each parameter."""
    data = ["a fox of nulls", *[None] * (len(PARAMETERS) - 1)]
    data[PARAMETERS.index("num_inference_steps")] = 1
    assert "event: complete" in httpx.get(event_url(url, data), timeout=60).text
    request = served.recent(limit=1)[0].request
    assert (request.prompt, request.model_key, request.num_images, request.style) == (
        "a fox of nulls",
        "starter",
        1,
        "none",
    )
    answer = httpx.get(event_url(url, []), timeout=60).text
    assert "Prompt must not be empty." in answer


def event_url(url: str, data: list[Any]) -> str:
    address = f"{url}/gradio_api/call/generate"
    return f"{address}/{httpx.post(address, json={'data': data}).json()['event_id']}"


def test_a_request_of_another_magic_canvas_is_a_dict(client: Client) -> None:
    fields = {"prompt": "a fox", "seed": 5, "num_inference_steps": 1, "num_images": 3, "width": 128, "height": 128}
    with pytest.raises(AppError, match="a dict of the fields of a request"):
        client.predict([fields], None, None, api_name="/draw")
    *_, settings = client.predict(fields, None, None, api_name="/draw")
    assert (settings["seed"], settings["num_images"]) == (5, 1)


@pytest.mark.slow
def test_two_clients_are_served_in_order(url: str) -> None:
    finished: list[str] = []

    def generate(prompt: str, submitted: threading.Event) -> None:
        client = Client(url, verbose=False, download_files=False)
        job = client.submit(prompt, num_inference_steps=2, api_name="/generate")
        for _, update in job:
            assert update.get("prompt", prompt) == prompt
            submitted.set()
        finished.append(prompt)

    threads = []
    for prompt in ("first boat", "second boat"):
        submitted = threading.Event()
        threads.append(threading.Thread(target=generate, args=(prompt, submitted)))
        threads[-1].start()
        assert submitted.wait(60)
    for thread in threads:
        thread.join(60)
    assert finished == ["first boat", "second boat"]


def test_models_are_listed(client: Client) -> None:
    models = {model["model_key"]: model for model in client.predict(api_name="/models")}
    assert models["starter"]["resolution"] == 256
    assert models["small"]["state"]
