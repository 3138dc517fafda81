"""Follows a job from the server's event loop, and stops it when its client is gone."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

import anyio

from canvas.jobs import Job

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
