"""What all APIs share: following a job on the event loop."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from canvas import GenerationRequest
from canvas.api import base
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
