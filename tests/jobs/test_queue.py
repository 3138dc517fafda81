from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas import GenerationRequest
from canvas.errors import GenerationCancelled
from canvas.jobs.job import Job
from canvas.jobs.queue import LOOKAHEAD, JobQueue, JobRegistry, Visitor


def make_job(owner: str) -> Job:
    return Job(owner, "generate", "starter", GenerationRequest("a fox"))


def drain(queue: JobQueue, count: int) -> Iterator[Job]:
    for _ in range(count):
        job = queue.take()
        assert job is not None
        yield job


def test_take_alternates_between_owners() -> None:
    queue = JobQueue()
    many = [make_job("ann") for _ in range(3)]
    late = make_job("bob")
    for job in [*many, late]:
        queue.put(job)
    assert list(drain(queue, 4)) == [many[0], late, many[1], many[2]]


def test_take_alternates_between_networks_first() -> None:
    queue = JobQueue()
    crowd = [make_job(Visitor(f"visitor-{number}", "203.0.113.7/32")) for number in (1, 1, 2, 3)]
    alone = [make_job(Visitor("visitor-4", "198.51.100.1/32")) for _ in range(3)]
    with_key = make_job("key-ann")
    for job in [*crowd, *alone, with_key]:
        queue.put(job)
    expected = [crowd[0], alone[0], with_key, crowd[2], alone[1], crowd[3], alone[2], crowd[1]]
    assert queue.snapshot() == expected
    assert list(drain(queue, 8)) == expected


def test_owners_with_only_cancelled_jobs_are_forgotten() -> None:
    queue = JobQueue()
    for number in range(100):
        job = make_job(f"visitor-{number}")
        queue.put(job)
        job.cancel()
    queue.put(make_job("ann"))
    assert list(queue._waiting) == ["ann"]


OWNERS = ["a", "b", Visitor("c", "1"), Visitor("d", "1"), Visitor("e", "2")]


@given(st.lists(st.sampled_from(OWNERS), max_size=12))
def test_snapshot_matches_take_order(owners: list[str]) -> None:
    queue = JobQueue()
    for owner in owners:
        queue.put(make_job(owner))
    snapshot = queue.snapshot()
    assert len(snapshot) == len(owners)
    assert list(drain(queue, len(owners))) == snapshot


def test_take_skips_cancelled_jobs() -> None:
    queue, first, second = JobQueue(), make_job("ann"), make_job("ann")
    queue.put(first)
    queue.put(second)
    first.cancel()
    assert queue.snapshot() == [second]
    assert queue.take() is second
    with pytest.raises(GenerationCancelled):
        first.wait()


def test_take_returns_none_after_close() -> None:
    queue = JobQueue()
    taken: list[Job | None] = []
    worker = threading.Thread(target=lambda: taken.append(queue.take()))
    worker.start()
    queue.close()
    worker.join(timeout=10)
    assert taken == [None]


def test_the_registry_separates_owners_and_removes_old_jobs() -> None:
    registry = JobRegistry(keep_seconds=0)
    mine, theirs = make_job("ann"), make_job("bob")
    registry.add(mine)
    registry.add(theirs)
    assert registry.for_owner("ann") == [mine]
    assert registry.for_owner() == [mine, theirs]
    mine.update(status="done")
    registry.add(make_job("bob"))
    assert registry.get(mine.id) is None
    assert registry.get(theirs.id) is theirs
    registry.remove(theirs)
    assert registry.get(theirs.id) is None


def test_the_registry_keeps_jobs_that_finished_lately() -> None:
    registry, done = JobRegistry(), make_job("ann")
    registry.add(done)
    done.update(status="done")
    registry.add(make_job("bob"))
    assert registry.get(done.id) is done


def for_model(key: str) -> Job:
    return Job("ann", "generate", key, GenerationRequest("a fox", model_key=key))


def test_take_prefers_jobs_but_skips_others_a_limited_number_of_times() -> None:
    queue = JobQueue()
    other = for_model("tiny")
    mine = [for_model("starter") for _ in range(6)]
    for job in [other, *mine]:
        queue.put(job)

    def prefers(job: Job) -> bool:
        return job.model_key == "starter"

    taken = [queue.take(prefers) for _ in range(7)]
    assert taken == [*mine[:3], other, *mine[3:]]


def test_take_leaves_a_job_to_the_idle_worker_that_prefers_it() -> None:
    queue, taken = JobQueue(), dict[str, Job | None]()

    def take(key: str) -> None:
        taken[key] = queue.take(lambda job: job.model_key == key)

    workers = [threading.Thread(target=take, args=(key,)) for key in ("starter", "tiny")]
    for worker in workers:
        worker.start()
    while len(queue._idle) < 2:
        threading.Event().wait(0.001)
    for key in ("tiny", "starter"):
        queue.put(for_model(key))
    for worker in workers:
        worker.join(timeout=30)
    assert {key: job and job.model_key for key, job in taken.items()} == {"starter": "starter", "tiny": "tiny"}


def test_a_worker_without_a_preference_takes_the_next_job() -> None:
    queue, jobs = JobQueue(), [for_model("tiny"), for_model("starter")]
    for job in jobs:
        queue.put(job)
    assert queue.take(lambda job: False) is jobs[0]
    assert queue.take() is jobs[1]
    assert [job.skipped for job in jobs] == [0, 0]


def test_a_preferred_job_far_behind_is_not_taken_first() -> None:
    queue, jobs = JobQueue(), [for_model("tiny") for _ in range(LOOKAHEAD)]
    last = for_model("starter")
    for job in [*jobs, last]:
        queue.put(job)
    assert queue.take(lambda job: job.model_key == "starter") is jobs[0]
    assert queue.take(lambda job: job.model_key == "starter") is last


def test_put_first_goes_before_all_jobs() -> None:
    queue, jobs = JobQueue(), [make_job("ann"), make_job("bob")]
    for job in jobs:
        queue.put(job)
    again = make_job("bob")
    queue.put(again, first=True)
    assert list(drain(queue, 3)) == [again, jobs[0], jobs[1]]
