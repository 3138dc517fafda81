"""What all APIs share: following a job on the event loop, errors, limits and files."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Query
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from canvas import GenerationRequest
from canvas.api import base
from canvas.errors import GenerationCancelled, MissingApiKey, StorageError
from canvas.jobs.job import Job


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    """A running job, which is polled every millisecond."""
    monkeypatch.setattr(base, "POLL_INTERVAL", 0.001)
    job = Job("ann", "generate", "starter", GenerationRequest("a fox"))
    job.update(status="running")
    return job


async def follow(job: Job, polls: int) -> list[str]:
    """The statuses that a subscriber sees while the job runs for that many polls and is done then."""
    seen = []

    async def finish() -> None:
        for _ in range(polls):
            await asyncio.sleep(base.POLL_INTERVAL)
        job.update(status="done")

    finishing = asyncio.create_task(finish())
    async with aclosing(base.stream_job(job)) as updates:
        async for update in updates:
            seen.append(update.status)
    await finishing
    return seen


def test_a_stream_has_the_state_now_the_changes_and_the_end(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "HEARTBEAT", 3600)
    assert asyncio.run(follow(job, polls=20)) == ["running", "done"]
    assert asyncio.run(follow(job, polls=0)) == ["done"]


def test_a_stream_repeats_the_state_so_that_the_connection_stays_open(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "HEARTBEAT", 0)
    assert asyncio.run(follow(job, polls=20)).count("running") > 2


def test_a_stream_that_is_closed_earlier_cancels_the_job(job: Job) -> None:
    async def read_once() -> None:
        async with aclosing(base.stream_job(job)) as updates:
            await anext(updates)

    asyncio.run(read_once())
    assert job.cancelled.is_set()


def wait(job: Job, disconnects_after: int) -> Any:
    """What `wait_for_job` returns to a client that asks so often until it disconnects."""
    looks = 0

    async def is_disconnected() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            job.update(status="done")
        return looks > disconnects_after

    request: Any = SimpleNamespace(is_disconnected=is_disconnected)
    return asyncio.run(base.wait_for_job(job, request))


def test_a_client_waits_for_the_images_of_a_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "HEARTBEAT", 0)
    assert wait(job, disconnects_after=3) is job.images
    assert not job.cancelled.is_set()


def test_a_client_that_is_gone_gets_no_images(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "HEARTBEAT", 0)
    with pytest.raises(GenerationCancelled):
        wait(job, disconnects_after=1)
    assert job.cancelled.is_set()


def test_the_error_of_a_job_is_raised(job: Job) -> None:
    job.error = StorageError("The disk is full.")
    job.update(status="failed")
    with pytest.raises(StorageError):
        wait(job, disconnects_after=9)


class Body(BaseModel):
    steps: int
    names: list[int] = []


@pytest.fixture
def client() -> Iterator[TestClient]:
    router = APIRouter(route_class=base.ApiRoute)

    async def draw(body: Body) -> dict[str, int]:
        return {"steps": body.steps}

    async def find(limit: Annotated[int, Query(ge=1)] = 1) -> None:
        raise HTTPException(404, f"none of {limit}")

    async def fail() -> None:
        raise StorageError("The disk is full.")

    router.post("/draw")(draw)
    router.get("/find")(find)
    router.get("/fail")(fail)
    app = FastAPI()
    app.include_router(router)
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "The request body must be a JSON object with the fields documented at /docs."),
        (b"7", "The request body must be a JSON object with the fields documented at /docs."),
        (b"\xff", "The request body must be a JSON object with the fields documented at /docs."),
        (b"", "The request body must be a JSON object with the fields documented at /docs."),
        (b"{}", "Steps is required."),
        (b'{"steps": "many"}', "Steps must be a valid integer (got 'many')."),
        (b'{"steps": 1, "names": [1, "x"]}', "names.1 must be a valid integer (got 'x')."),
    ],
)
def test_a_wrong_body_is_an_error_of_our_own(client: TestClient, body: bytes, message: str) -> None:
    response = client.post("/draw", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"].lower() == message.lower()


def test_other_errors_have_their_status(client: TestClient) -> None:
    assert client.get("/find").status_code == 404
    assert client.get("/find?limit=0").json()["error"]["message"] == (
        "Limit must be greater than or equal to 1 (got '0')."
    )
    assert client.get("/fail").status_code == StorageError.http_status
    assert client.post("/draw", json={"steps": 3}).json() == {"steps": 3}


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_is_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch, announced: bool) -> None:
    monkeypatch.setattr(base, "MAX_BODY", 3 * 2**20)

    def post(size: int) -> int:
        body = b'{"steps": 3}'.ljust(size)
        content: Any = body if announced else iter([body[:100], body[100:]])
        return client.post("/draw", content=content, headers={"content-type": "application/json"}).status_code

    assert post(base.MAX_BODY) == 200
    assert post(base.MAX_BODY + 1) == 413


def test_the_limit_of_a_body_is_named() -> None:
    assert str(base.BodyTooLarge()) == "The request body must be at most 20 MiB."


@pytest.mark.parametrize(
    "state", [{}, {"owner": None, "api_allowed": True}, {"owner": "ann", "api_allowed": False}, {"owner": "ann"}]
)
def test_an_owner_needs_access_to_the_api(state: dict[str, Any]) -> None:
    with pytest.raises(MissingApiKey):
        base.require_owner(SimpleNamespace(state=SimpleNamespace(**state)))


def test_the_owner_of_a_request_that_may_use_the_api() -> None:
    state = SimpleNamespace(owner="ann", api_allowed=True)
    assert base.require_owner(SimpleNamespace(state=state)) == "ann"


def stored(items: Any) -> tuple[Any, list[bytes]]:
    """What remains of guiding images, and the files that were stored."""
    files: list[bytes] = []

    def upload(source: bytes, field: str) -> Any:
        assert field == "control_images"
        files.append(source)
        return SimpleNamespace(name=f"{len(files)}.png")

    studio: Any = SimpleNamespace(inputs=SimpleNamespace(upload=upload))
    return asyncio.run(base.upload_guidance(studio, items, "control_images")), files


def test_guiding_images_in_base64_are_stored() -> None:
    long, short = (base64.b64encode(content).decode() for content in (bytes(192), b"x"))
    items = [{"image": long, "weight": 1}, {"image": f"data:image/png;base64,{short}"}, {"image": "a" * 255}]
    assert stored(items) == (
        [{"image": "1.png", "weight": 1}, {"image": "2.png"}, {"image": "a" * 255}],
        [bytes(192), b"x"],
    )


@pytest.mark.parametrize("items", ["text", None, {"image": "data:,"}, [7, "x", {"image": 7}, {}]])
def test_what_is_no_list_of_images_stays_for_the_request_to_report(items: Any) -> None:
    assert stored(items) == (items, [])


@pytest.mark.parametrize(("signed", "query"), [(False, ""), (True, "?signature=of a.png")])
def test_an_address_is_signed_where_there_is_a_login(signed: bool, query: str) -> None:
    state = SimpleNamespace(**({"sign_link": lambda name: f"signature=of {name}"} if signed else {}))
    request = SimpleNamespace(state=state, url_for=lambda route, filename: f"http://x/{route}/{filename}")
    image: Any = SimpleNamespace(filename="a.png")
    assert base.image_url(request, image) == f"http://x/picture/a.png{query}"
