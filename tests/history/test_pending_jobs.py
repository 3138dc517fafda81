from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from canvas.errors import NotFound
from canvas.history.database import Database
from canvas.history.pending_jobs import PendingJob, PendingJobStore
from canvas.request import GenerationRequest


def test_remove_eventually_from_many_threads(database: Database) -> None:
    jobs = PendingJobStore(database)
    ids = [f"job{number}" for number in range(200)]
    for job_id in ids:
        jobs.add(PendingJob(job_id, "ann", GenerationRequest("a fox"), datetime.now(UTC)))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(jobs.remove_eventually, ids))  # raises the first exception
    assert database.rows("SELECT id FROM unfinished_jobs") == []


def test_old_field_names_of_orphaned_jobs_are_read(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO unfinished_jobs VALUES ('1', 'ann', ?, '0@0', '2026-05-04')",
            ['{"prompt": "a fox", "mode": "turbo", "where": "here", "extend": [8, 0, 0, 0]}'],
        )
    (job,) = PendingJobStore(database).orphaned("ann")
    assert job.request == GenerationRequest("a fox", preset="turbo", outpaint=(8, 0, 0, 0))


def test_an_interrupted_job_is_found_by_its_number_and_owner(database: Database) -> None:
    with database.transaction() as connection:
        for job_id, owner, prompt in (("1", "ann", "a fox"), ("2", "ann", "an owl"), ("3", "ben", "a cat")):
            connection.execute(
                "INSERT INTO unfinished_jobs VALUES (?, ?, ?, '0@0', '2026-05-04')",
                [job_id, owner, f'{{"prompt": "{prompt}"}}'],
            )
    jobs = PendingJobStore(database)
    assert jobs.get("2", "ann").request.prompt == "an owl"
    for missing in ("3", "4"):
        with pytest.raises(NotFound, match=f"There is no interrupted job '{missing}'"):
            jobs.get(missing, "ann")
