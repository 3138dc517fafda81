from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import webuiapi
from gradio_client import Client
from gradio_client.exceptions import AppError
from mcp import ClientSession, McpError
from mcp.client.streamable_http import streamablehttp_client

from canvas import GenerationRequest, Studio
from canvas.history.api_keys import ApiKeyStore
from canvas.jobs.job import Job
from canvas.server.api_keys import key_from_headers
from canvas.settings import Settings
from tests.app_server import serving

FAST = {"num_inference_steps": 1}


@pytest.fixture(scope="module", params=["login", "public"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Studio]:
    kind = {"auth": ("ann", "secret")} if request.param == "login" else {"public": True}
    with serving(tmp_path_factory.mktemp("guarded"), **kind) as studio:
        yield studio


@pytest.fixture(scope="module")
def key(guarded: Studio) -> str:
    return ApiKeyStore(guarded.database).create("laptop")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/images/generations"),
        ("GET", "/v1/models"),
        ("POST", "/sdapi/v1/txt2img"),
        ("GET", "/sdapi/v1/options"),
        ("GET", "/metrics"),
        ("POST", "/gradio_api/mcp/"),
    ],
)
@pytest.mark.parametrize("header", [None, "Bearer mc-wrong", "Basic bm9wZQ==", "Basic !", "x"])
def test_no_program_comes_in_without_a_key(
    guarded: Studio, method: str, path: str, header: str | None
) -> None:
    headers = {"authorization": header} if header else {}
    answer = httpx.request(method, guarded.url + path, json={"prompt": "a fox"}, headers=headers)
    assert answer.status_code == 401
    assert "keys make" in answer.text
    assert answer.headers["www-authenticate"] in ("Bearer", "Basic")
    assert guarded.recent(None) == []


def test_anybody_may_ask_whether_it_is_well(guarded: Studio) -> None:
    assert httpx.get(f"{guarded.url}/healthz").status_code == 200


def test_behind_a_login_a_name_is_not_enough(guarded: Studio, key: str) -> None:
    [picture] = guarded.generate(GenerationRequest("a name", num_inference_steps=1), "key-laptop")
    address = f"{guarded.url}/pictures/{picture.filename}"
    expected = 401 if guarded.settings.auth else 200
    assert httpx.get(address).status_code == expected
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(address, headers=headers).status_code == 200


def test_openai_clients_bring_a_key(guarded: Studio, key: str) -> None:
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)
    client.images.generate(prompt="openai", response_format="b64_json", extra_body=FAST)
    assert guarded.recent("key-laptop")[0].request.prompt == "openai"
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="mc-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as error:
        client.models.list()
    assert error.value.code == "invalid_api_key"


def test_sdapi_clients_bring_it_as_the_password(guarded: Studio, key: str) -> None:
    host, _, port = guarded.url.removeprefix("http://").partition(":")
    client = webuiapi.WebUIApi(host=host, port=int(port), username="me", password=key, steps=1)
    client.txt2img(prompt="sdapi").image.close()
    client.session.close()
    assert guarded.recent("key-laptop")[0].request.prompt == "sdapi"


def test_gradio_clients_bring_a_key(guarded: Studio, key: str, tmp_path: Any) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    client = Client(guarded.url, headers=headers, verbose=False, download_files=str(tmp_path))
    client.predict("gradio", num_inference_steps=1, api_name="/generate")
    [newest] = guarded.recent("key-laptop", limit=1)
    assert newest.request.prompt == "gradio"
    assert client.predict(api_name="/history")[0]["id"] == newest.id


def test_gradio_clients_without_a_key_get_nothing(guarded: Studio) -> None:
    if guarded.settings.auth:
        with pytest.raises(Exception, match=r"(?i)auth|login|401"):
            Client(guarded.url, verbose=False)
        client = Client(guarded.url, auth=("ann", "secret"), verbose=False, download_files=False)
        client.predict("logged in", num_inference_steps=1, api_name="/generate")
        assert guarded.recent("ann")[0].request.prompt == "logged in"
        return
    client = Client(guarded.url, verbose=False)
    for name in ("/history", "/status"):
        with pytest.raises(AppError, match="keys make"):
            client.predict(api_name=name)
    with pytest.raises(AppError, match="keys make"):
        client.predict("a fox", api_name="/generate")


def test_agents_bring_a_key(guarded: Studio, key: str) -> None:
    async def ask() -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        address = f"{guarded.url}/gradio_api/mcp/"
        async with (
            streamablehttp_client(address, headers=headers) as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            wish = {"prompt": "mcp", "num_inference_steps": 1}
            answer = await session.call_tool("generate", wish)
            assert not answer.isError
            listing = await session.read_resource("canvas://pictures")
            with pytest.raises(McpError, match=f"no picture {stranger.id}"):
                await session.read_resource(f"canvas://pictures/{stranger.id}")
            return json.loads(listing.contents[0].text)

    [stranger] = guarded.generate(GenerationRequest("theirs", num_inference_steps=1), "stranger")
    listed = asyncio.run(ask())
    assert [picture["id"] for picture in listed] == [
        picture.id for picture in guarded.recent("key-laptop", limit=20)
    ]
    assert listed[0]["prompt"] == "mcp"


def test_two_keys_are_served_in_order_with_progress_of_their_own(guarded: Studio) -> None:
    names = [f"{name}-{guarded.settings.public}" for name in ("first", "second")]
    headers = [
        {"Authorization": f"Bearer {ApiKeyStore(guarded.database).create(name)}"} for name in names
    ]
    address = f"{guarded.url}/sdapi/v1"

    def ask(number: int, steps: int) -> Job:
        body = {"prompt": "in order", "steps": steps}
        asking = {"json": body, "headers": headers[number], "timeout": 120}
        threads.append(
            threading.Thread(target=httpx.post, args=[f"{address}/txt2img"], kwargs=asking)
        )
        threads[-1].start()
        while not (jobs := guarded.jobs(f"key-{names[number]}")):
            assert threads[-1].is_alive()
        return jobs[0]

    threads: list[threading.Thread] = []
    first = ask(0, 100)
    for _ in first.subscribe(timeout=60):
        if first.progress is not None:
            break
    second = ask(1, 2)
    told = [httpx.get(f"{address}/progress", headers=one).json() for one in headers]
    for thread in threads:
        thread.join(120)
    assert [one["state"]["sampling_steps"] for one in told] == [100, 0]
    assert [one["state"]["job_count"] for one in told] == [1, 1]
    assert told[0]["progress"] > told[1]["progress"] == 0
    assert (first.status, second.status) == ("done", "done")
    assert first.finished_at <= second.started_at


def test_what_belongs_to_others_is_not_found(guarded: Studio, key: str) -> None:
    other = ApiKeyStore(guarded.database).create(f"other-{key[-6:]}")
    headers = {"Authorization": f"Bearer {other}"}
    client = Client(guarded.url, headers=headers, verbose=False, download_files=False)
    assert client.predict(api_name="/history") == []
    assert client.predict(api_name="/status") == []
    with pytest.raises(AppError, match="no picture 1"):
        client.predict(1, api_name="/image")
    [job, *_] = guarded.jobs("key-laptop")
    with pytest.raises(AppError, match="no job"):
        client.predict(job.id, api_name="/cancel")


@pytest.mark.parametrize(
    ("changes", "asks"),
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
def test_keys_are_asked_for_where_others_come(changes: dict[str, Any], asks: bool) -> None:
    assert Settings(**changes).requires_api_key is asks


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        ("Bearer mc-abc", "mc-abc"),
        ("bearer  mc-abc ", "mc-abc"),
        ("Basic bWU6bWMtYWJj", "mc-abc"),
        ("Basic bm9jb2xvbg==", ""),
        ("Basic /w==", ""),
        ("Basic", ""),
        ("Digest mc-abc", ""),
        ("", ""),
    ],
)
def test_the_key_is_found_in_its_header(header: str, secret: str) -> None:
    assert key_from_headers(header) == secret
