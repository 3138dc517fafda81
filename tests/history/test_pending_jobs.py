from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psutil
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


def test_jobs_that_could_not_be_removed_are_removed_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ai_images.db"
    with closing(Database(path, busy_timeout=0.05)) as database:
        jobs = PendingJobStore(database)
        for job_id in ("1", "2", "3"):
            jobs.add(PendingJob(job_id, "ann", GenerationRequest("a fox"), datetime.now(UTC)))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            jobs.remove_eventually("1")
        assert len(database.rows("SELECT id FROM unfinished_jobs")) == 3
        jobs.remove_eventually("2")
        assert database.rows("SELECT id FROM unfinished_jobs") == [{"id": "3"}]


def test_jobs_of_running_processes_are_not_orphaned(database: Database) -> None:
    jobs = PendingJobStore(database)
    jobs.add(PendingJob("1", "ann", GenerationRequest("a fox"), datetime.now(UTC)))
    assert jobs.orphaned("ann") == []
    with database.transaction() as connection:
        connection.execute("UPDATE unfinished_jobs SET server = ?", [f"{os.getpid()}@0-earlier"])
    assert [job.id for job in jobs.orphaned("ann")] == ["1"], "its process had the same number"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="elsewhere the time of the start is that of psutil")
def test_a_process_is_named_with_its_start(database: Database) -> None:
    jobs = PendingJobStore(database)
    jobs.add(PendingJob("1", "ann", GenerationRequest("a fox"), datetime.now(UTC)))
    (row,) = database.rows("SELECT server FROM unfinished_jobs")
    number, _, start = row["server"].partition("@")
    ticks, _, boot = start.partition("-")
    assert (int(number), boot) == (os.getpid(), Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    seconds = int(ticks) / os.sysconf("SC_CLK_TCK")
    assert psutil.boot_time() + seconds == pytest.approx(psutil.Process().create_time(), abs=5)
