from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from canvas.history.database import Store
from canvas.history.pending_jobs import UnfinishedJob, UnfinishedJobs
from canvas.request import GenerationRequest


def test_jobs_that_end_at_once_are_all_forgotten(store: Store) -> None:
    jobs = UnfinishedJobs(store)
    names = [f"job{number}" for number in range(200)]
    for name in names:
        jobs.add(UnfinishedJob(name, "ann", GenerationRequest("a fox"), datetime.now(UTC)))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(jobs.forget, names))  # raises what one of them raised
    assert store.rows("SELECT id FROM unfinished_jobs") == []
