from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from canvas import GenerationRequest
from canvas.errors import CanvasError, GenerationCancelled
from canvas.jobs.job import Job
from canvas.jobs.queue import JobQueue, JobRegistry
from canvas.request import ProgressUpdate


def job_of(owner: str) -> Job:
    return Job(owner, "generate", "starter", GenerationRequest("a fox"))


def drain(queue: JobQueue, count: int) -> Iterator[Job]:
    for _ in range(count):
        job = queue.take()
        assert job is not None
        yield job


def test_owners_take_turns() -> None:
    queue = JobQueue()
    flood = [job_of("ann") for _ in range(3)]
    late = job_of("bob")
    for job in [*flood, late]:
        queue.put(job)
    assert list(drain(queue, 4)) == [flood[0], late, flood[1], flood[2]]


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_the_order_foretold_is_the_order_taken(owners: list[str]) -> None:
    queue = JobQueue()
    for owner in owners:
        queue.put(job_of(owner))
    foretold = queue.snapshot()
    assert len(foretold) == len(owners)
    assert list(drain(queue, len(owners))) == foretold


def test_a_cancelled_job_is_passed_over() -> None:
    queue, first, second = JobQueue(), job_of("ann"), job_of("ann")
    queue.put(first)
    queue.put(second)
    first.cancel()
    assert queue.snapshot() == [second]
    assert queue.take() is second
    with pytest.raises(GenerationCancelled):
        first.wait()


def test_a_closed_queue_sends_the_worker_home() -> None:
    queue = JobQueue()
    got: list[Job | None] = []
    worker = threading.Thread(target=lambda: got.append(queue.take()))
    worker.start()
    queue.close()
    worker.join(timeout=10)
    assert got == [None]


def test_a_watcher_sees_the_end_and_what_it_missed_at_once() -> None:
    job = job_of("ann")
    job.update(status="running", progress=ProgressUpdate(1, 4))
    job.update(progress=ProgressUpdate(2, 4))
    watcher = job.subscribe()
    assert next(watcher).progress == ProgressUpdate(2, 4)
    threading.Timer(0.05, job.update, kwargs={"status": "done"}).start()
    assert [seen.status for seen in watcher] == ["done"]


def test_a_finished_job_stays_as_it_ended() -> None:
    job = job_of("ann")
    job.update(status="failed", error=CanvasError("no"))
    job.update(status="running")
    assert job.status == "failed"
    assert job.finished_at is not None
    with pytest.raises(CanvasError, match="no"):
        job.wait()


def test_what_is_remembered_of_a_job_is_small() -> None:
    page = ContextVar[str]("page")
    page.set("what a browser sent")
    job = job_of("ann")
    assert page in job.context
    job.report_progress(
        status="running", step=ProgressUpdate(1, 4, preview=Image.new("RGB", (64, 64)))
    )
    assert job.preview is not None
    assert job.progress == ProgressUpdate(1, 4)
    assert job.progress.preview is None
    job.update(status="failed", error=CanvasError("Broken."))
    assert job.preview is None
    assert page not in job.context


def test_waiting_can_end_early() -> None:
    with pytest.raises(CanvasError, match="still queued"):
        job_of("ann").wait(timeout=0)


def test_the_book_keeps_owners_apart_and_forgets() -> None:
    book = JobRegistry(keep_seconds=0)
    mine, theirs = job_of("ann"), job_of("bob")
    book.add(mine)
    book.add(theirs)
    assert book.for_owner("ann") == [mine]
    assert book.for_owner() == [mine, theirs]
    mine.update(status="done")
    book.add(job_of("bob"))
    assert book.get(mine.id) is None
    assert book.get(theirs.id) is theirs


def test_ids_cannot_be_guessed() -> None:
    assert len({job_of("ann").id for _ in range(100)}) == 100
    assert len(job_of("ann").id) == 32


def for_model(key: str) -> Job:
    return Job("ann", "generate", key, GenerationRequest("a fox", model_key=key))


def test_a_taker_prefers_what_suits_it_but_nobody_waits_for_ever() -> None:
    queue = JobQueue()
    other = for_model("tiny")
    mine = [for_model("starter") for _ in range(6)]
    for job in [other, *mine]:
        queue.put(job)

    def suits(job: Job) -> bool:
        return job.model_key == "starter"

    taken = [queue.take(suits) for _ in range(7)]
    assert taken == [*mine[:3], other, *mine[3:]]


def test_a_job_is_left_to_the_idle_taker_that_it_suits() -> None:
    queue, taken = JobQueue(), dict[str, Job | None]()

    def take(key: str) -> None:
        taken[key] = queue.take(lambda job: job.model_key == key)

    takers = [threading.Thread(target=take, args=(key,)) for key in ("starter", "tiny")]
    for taker in takers:
        taker.start()
    while len(queue._idle) < 2:
        threading.Event().wait(0.001)
    for key in ("tiny", "starter"):
        queue.put(for_model(key))
    for taker in takers:
        taker.join(timeout=30)
    assert {key: job and job.model_key for key, job in taken.items()} == {
        "starter": "starter",
        "tiny": "tiny",
    }


def test_a_job_that_is_run_again_goes_first() -> None:
    queue, jobs = JobQueue(), [job_of("ann"), job_of("bob")]
    for job in jobs:
        queue.put(job)
    again = job_of("bob")
    queue.put(again, first=True)
    assert list(drain(queue, 3)) == [again, jobs[0], jobs[1]]
