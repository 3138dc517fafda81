"""Follows a job from the server's event loop, and stops it when its client is gone."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio

from canvas.jobs import Job

if TYPE_CHECKING:
    from starlette.requests import Request

    from canvas.request import GeneratedImage

PAUSE = 0.05  # seconds: looking is cheaper than a waiting thread for each client
SIGN_OF_LIFE = 1.0  # seconds: how long a client that hung up may go unnoticed


async def follow(job: Job) -> AsyncGenerator[Job, None]:
    """Yield the job after every change and at least once a second, until it is finished.

    Leaving early, for whatever reason, cancels it: it was asked for by this caller only.
    Use it with `aclosing`, so that leaving is noticed at once.
    """
    seen, last = -1, time.monotonic()
    try:
        while not job.finished:
            if job.version != seen or time.monotonic() - last > SIGN_OF_LIFE:
                seen, last = job.version, time.monotonic()
                yield job
            await anyio.sleep(PAUSE)
        yield job
    finally:
        if not job.finished:
            job.cancel()


async def finish(job: Job, request: Request) -> list[GeneratedImage]:
    """Wait for the pictures of a plain request; a client that hangs up cancels them.

    Raises why there are none.
    """
    async with aclosing(follow(job)) as changes:
        async for _ in changes:
            if not job.finished and await request.is_disconnected():
                break
    if job.error:
        raise job.error
    return job.images
