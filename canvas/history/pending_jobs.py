"""Unfinished jobs on disk, so that they can be run again after a restart."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from canvas.errors import NotFound, StorageError
from canvas.history.database import Database
from canvas.request import GenerationRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingJob:
    """A job that has not finished."""

    id: str
    owner: str
    request: GenerationRequest
    created_at: datetime


class PendingJobStore:
    """The unfinished jobs of this process and of those that ended without finishing theirs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._process = _process_id(os.getpid())
        self._to_remove: list[str] = []
        self._remove_lock = threading.Lock()  # jobs end in several threads

    def add(self, job: PendingJob) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO unfinished_jobs (id, owner, request, server, created_at) VALUES (?, ?, ?, ?, ?)",
                [job.id, job.owner, json.dumps(job.request.to_dict()), self._process, job.created_at.isoformat()],
            )

    def remove(self, job_id: str) -> None:
        """Remove a job that has finished, was submitted again or dismissed."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM unfinished_jobs WHERE id = ?", [job_id])

    def remove_eventually(self, job_id: str) -> None:
        """Like `remove`, but if the database cannot be written, retry with the next call."""
        with self._remove_lock:
            self._to_remove.append(job_id)
            while self._to_remove:
                try:
                    self.remove(self._to_remove[0])
                except StorageError as error:
                    log.warning("A finished job could not be removed from the database: %s", error)
                    return
                del self._to_remove[0]

    def orphaned(self, owner: str) -> list[PendingJob]:
        """The owner's jobs whose process no longer runs, oldest first."""
        rows = self._database.rows("SELECT * FROM unfinished_jobs WHERE owner = ? ORDER BY created_at", [owner])
        return [
            PendingJob(
                row["id"],
                row["owner"],
                GenerationRequest.from_dict(json.loads(row["request"])),
                datetime.fromisoformat(row["created_at"]).astimezone(UTC),
            )
            for row in rows
            if not self._is_alive(row["server"])
        ]

    def get(self, job_id: str, owner: str) -> PendingJob:
        """One of the owner's orphaned jobs; raises NotFound."""
        for job in self.orphaned(owner):
            if job.id == job_id:
                return job
        raise NotFound(f"There is no interrupted job {job_id!r}.")

    def _is_alive(self, process: str) -> bool:
        if process == self._process:  # without reading files at every poll of the page
            return True
        try:
            return _process_id(int(process.partition("@")[0])) == process
        except (psutil.Error, OSError, ValueError):
            return False


def _process_id(pid: int) -> str:
    """The process id with the start time, since the system reuses ids."""
    # psutil takes the time from the clock, which may be set; Linux also counts since boot.
    if sys.platform != "linux":
        return f"{pid}@{psutil.Process(pid).create_time():.2f}"
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{pid}@{started}-{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
