from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from canvas.history.database import Database
from canvas.history.pending_jobs import PendingJob, PendingJobStore
from canvas.request import GenerationRequest


def test_jobs_that_end_at_once_are_all_forgotten(store: Database) -> None:
    jobs = PendingJobStore(store)
    names = [f"job{number}" for number in range(200)]
    for name in names:
        jobs.add(PendingJob(name, "ann", GenerationRequest("a fox"), datetime.now(UTC)))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(jobs.remove_eventually, names))  # raises what one of them raised
    assert store.rows("SELECT id FROM unfinished_jobs") == []
