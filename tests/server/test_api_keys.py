from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import webuiapi
from gradio_client import Client
from gradio_client.exceptions import AppError
from mcp import ClientSession, McpError

from canvas import GenerationRequest, Studio
from canvas.history.api_keys import ApiKeyStore
from canvas.jobs.job import Job
from canvas.server.auth import ApiKeyMiddleware, key_from_headers
from canvas.settings import Settings
from tests.app_server import run_in_mcp_session, serving
from tests.server.asgi import call, http_scope

FAST = {"num_inference_steps": 1}


@pytest.fixture(scope="module", params=["login", "public"])
def protected(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Studio]:
    options = {"auth": ("ann", "secret")} if request.param == "login" else {"public": True}
    with serving(tmp_path_factory.mktemp("protected"), **options) as studio:
        yield studio


@pytest.fixture(scope="module")
def key(protected: Studio) -> str:
    return ApiKeyStore(protected.database).create("laptop")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/images/generations"),
        ("GET", "/v1/models"),
        ("POST", "/sdapi/v1/txt2img"),
        ("GET", "/sdapi/v1/options"),
        ("GET", "/controlnet/model_list"),
        ("GET", "/metrics"),
        ("POST", "/gradio_api/mcp/"),
    ],
)
@pytest.mark.parametrize("header", [None, "Bearer mc-wrong", "Basic bm9wZQ==", "Basic !", "x"])
def test_api_routes_reject_requests_without_a_valid_key(
    protected: Studio, method: str, path: str, header: str | None
) -> None:
    headers = {"authorization": header} if header else {}
    before = protected.recent(None)
    response = httpx.request(method, protected.url + path, json={"prompt": "a fox"}, headers=headers)
    assert response.status_code == 401
    assert "keys create" in response.text
    assert response.headers["www-authenticate"] in ("Bearer", "Basic")
    assert protected.recent(None) == before


def test_health_needs_no_key(protected: Studio) -> None:
    assert httpx.get(f"{protected.url}/healthz").status_code == 200


def test_image_files_need_a_login_or_a_key(protected: Studio, key: str) -> None:
    [image] = protected.generate(GenerationRequest("a file", num_inference_steps=1), "key-laptop")
    address = f"{protected.url}/pictures/{image.filename}"
    expected = 401 if protected.settings.auth else 200
    assert httpx.get(address).status_code == expected
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(address, headers=headers).status_code == 200


def test_openai_clients_send_a_key(protected: Studio, key: str) -> None:
    with openai.OpenAI(base_url=f"{protected.url}/v1", api_key=key, max_retries=0) as client:
        client.images.generate(prompt="openai", response_format="b64_json", extra_body=FAST)
    assert protected.recent("key-laptop")[0].request.prompt == "openai"
    with (
        openai.OpenAI(base_url=f"{protected.url}/v1", api_key="mc-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as error,
    ):
        client.models.list()
    assert error.value.code == "invalid_api_key"


def test_a1111_clients_send_the_key_as_password(protected: Studio, key: str) -> None:
    host, _, port = protected.url.removeprefix("http://").partition(":")
    client = webuiapi.WebUIApi(host=host, port=int(port), username="me", password=key, steps=1)
    client.txt2img(prompt="sdapi").image.close()
    client.session.close()
    assert protected.recent("key-laptop")[0].request.prompt == "sdapi"


def test_gradio_clients_send_a_key(protected: Studio, key: str, tmp_path: Any) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    client = Client(protected.url, headers=headers, verbose=False, download_files=str(tmp_path))
    client.predict("gradio", num_inference_steps=1, api_name="/generate")
    [image] = protected.recent("key-laptop", limit=1)
    assert image.request.prompt == "gradio"
    assert client.predict(api_name="/history")[0]["id"] == image.id


def test_gradio_clients_without_a_key_are_rejected(protected: Studio) -> None:
    if protected.settings.auth:
        with pytest.raises(Exception, match=r"(?i)auth|login|401"):
            Client(protected.url, verbose=False)
        client = Client(protected.url, auth=("ann", "secret"), verbose=False, download_files=False)
        client.predict("logged in", num_inference_steps=1, api_name="/generate")
        assert protected.recent("ann")[0].request.prompt == "logged in"
        return
    client = Client(protected.url, verbose=False)
    for name in ("/history", "/status"):
        with pytest.raises(AppError, match="keys create"):
            client.predict(api_name=name)
    with pytest.raises(AppError, match="keys create"):
        client.predict("a fox", api_name="/generate")


def test_mcp_clients_send_a_key(protected: Studio, key: str) -> None:
    [other] = protected.generate(GenerationRequest("theirs", num_inference_steps=1), "other")

    async def generate_and_list(session: ClientSession) -> Any:
        arguments = {"prompt": "mcp", "num_inference_steps": 1}
        result = await session.call_tool("generate", arguments)
        assert not result.isError
        listing = await session.read_resource("canvas://pictures")
        with pytest.raises(McpError, match=rf"no image {other.id}"):
            await session.read_resource(f"canvas://pictures/{other.id}")
        return json.loads(listing.contents[0].text)

    headers = {"Authorization": f"Bearer {key}"}
    listed = run_in_mcp_session(protected.url, generate_and_list, headers)
    expected = [image.id for image in protected.recent("key-laptop", limit=20)]
    assert [image["id"] for image in listed] == expected
    assert listed[0]["prompt"] == "mcp"


@pytest.mark.slow
def test_each_key_has_its_own_progress(protected: Studio) -> None:
    names = [f"{name}-{protected.settings.public}" for name in ("first", "second")]
    headers = [{"Authorization": f"Bearer {ApiKeyStore(protected.database).create(name)}"} for name in names]
    address = f"{protected.url}/sdapi/v1"

    def start(number: int, steps: int) -> Job:
        body = {"prompt": "in order", "steps": steps}
        options = {"json": body, "headers": headers[number], "timeout": 120}
        threads.append(threading.Thread(target=httpx.post, args=[f"{address}/txt2img"], kwargs=options))
        threads[-1].start()
        while not (jobs := protected.jobs(f"key-{names[number]}")):
            assert threads[-1].is_alive()
        return jobs[0]

    threads: list[threading.Thread] = []
    first = start(0, 100)
    for _ in first.subscribe(timeout=60):
        if first.progress is not None:
            break
    second = start(1, 2)
    progress = [httpx.get(f"{address}/progress", headers=one).json() for one in headers]
    for thread in threads:
        thread.join(120)
    assert [one["state"]["sampling_steps"] for one in progress] == [100, 0]
    assert [one["state"]["job_count"] for one in progress] == [1, 1]
    assert progress[0]["progress"] > progress[1]["progress"] == 0
    assert (first.status, second.status) == ("done", "done")
    assert first.finished_at <= second.started_at


def test_images_and_jobs_of_others_are_not_found(protected: Studio, key: str) -> None:
    other = ApiKeyStore(protected.database).create(f"other-{key[-6:]}")
    headers = {"Authorization": f"Bearer {other}"}
    job = protected.submit(GenerationRequest("a file", num_inference_steps=1), "key-laptop")
    [image] = job.wait()
    client = Client(protected.url, headers=headers, verbose=False, download_files=False)
    assert client.predict(api_name="/history") == []
    assert client.predict(api_name="/status") == []
    with pytest.raises(AppError, match=f"no image {image.id}"):
        client.predict(image.id, api_name="/image")
    with pytest.raises(AppError, match="no job"):
        client.predict(job.id, api_name="/cancel")
    client.close()


@pytest.mark.parametrize(
    ("options", "required"),
    [
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
        ({"host": "0.0.0.0"}, True),  # noqa: S104
        ({"host": "192.168.1.7"}, True),
        ({"host": "my-machine"}, True),
        ({"share": True}, True),
        ({"public": True}, True),
        ({"auth": ("ann", "secret")}, True),
    ],
)
def test_keys_are_required_where_others_can_reach_the_server(options: dict[str, Any], required: bool) -> None:
    assert Settings(**options).requires_api_key is required


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer mc-abc", "mc-abc"),
        ("bearer  mc-abc ", "mc-abc"),
        ("Basic bWU6bWMtYWJj", "mc-abc"),
        ("Basic YTpiOmM=", "b:c"),
        ("Basic bm9jb2xvbg==", ""),
        ("Basic bWU6!bWMtYWJj", ""),
        ("Basic /w==", ""),
        ("Basic é", ""),
        ("Basic ÿÿ==", ""),
        ("Bearer é", "é"),
        ("Basic", ""),
        ("Digest mc-abc", ""),
        ("", ""),
    ],
)
def test_the_key_is_read_from_the_header(header: str, key: str) -> None:
    assert key_from_headers(header) == key


def users_of(authorization: str, *, login_required: bool, path: str = "/config") -> tuple[list[str], list[str], Any]:
    """Gradio's sessions during a request and after it, and its cookies; `mc-ann` is a key of ann's."""
    gradio = SimpleNamespace(tokens={}, cookie_id="id")
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([list(gradio.tokens.values()), dict(scope["headers"]).get(b"cookie", b"").decode()])

    api_keys: Any = SimpleNamespace(get_owner={"mc-ann": "key-ann"}.get)
    options: Any = {"required": True, "login_required": login_required, "internal_token": "internal"}
    middleware = ApiKeyMiddleware(app, api_keys=api_keys, **options)
    headers = {"authorization": f"Bearer {authorization}", "cookie": "a=b"}
    call(middleware, http_scope(path, headers=headers, app=gradio))
    users, cookie = seen
    return users, list(gradio.tokens.values()), cookie


@pytest.mark.parametrize(("key", "users"), [("mc-ann", ["key-ann"]), ("internal", [""]), ("mc-wrong", [])])
def test_a_key_logs_in_to_gradio_for_one_request(key: str, users: list[str]) -> None:
    during, afterwards, cookie = users_of(key, login_required=True)
    assert (during, afterwards) == (users, [])
    assert cookie.startswith("a=b; access-token-unsecure-id=") == bool(users)


@pytest.mark.parametrize("key", ["mc-ann", "internal"])
def test_without_a_login_a_key_needs_no_session(key: str) -> None:
    assert users_of(key, login_required=False) == ([], [], "a=b")


def test_other_connections_are_passed_on_once() -> None:
    reached = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    api_keys: Any = SimpleNamespace(get_owner={}.get)
    options: Any = {"required": True, "login_required": True, "internal_token": "internal"}
    call(ApiKeyMiddleware(app, api_keys=api_keys, **options), {"type": "lifespan"})
    assert reached == ["lifespan"]
