"""Jobs that are not done yet, on disk, so that a restart can offer to run them again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil

from canvas.errors import NotFound
from canvas.history.store import Store
from canvas.request import GenerationRequest


@dataclass(frozen=True)
class UnfinishedJob:
    """A job whose server went away before it was done."""

    id: str
    owner: str
    request: GenerationRequest
    created_at: datetime


class UnfinishedJobs:
    """What this server has accepted and not finished, and what dead servers have left."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._server = _server(psutil.Process(os.getpid()))

    def add(self, job: UnfinishedJob) -> None:
        """Remember a job that was accepted."""
        with self._store.transaction() as connection:
            connection.execute(
                "INSERT INTO unfinished_jobs (id, owner, request, server, created_at) "
                "VALUES (?, ?, ?, ?, ?)",
                [
                    job.id,
                    job.owner,
                    json.dumps(job.request.to_dict()),
                    self._server,
                    job.created_at.isoformat(),
                ],
            )

    def remove(self, job_id: str) -> None:
        """Forget a job: it ended, was run again, or is wanted no more."""
        with self._store.transaction() as connection:
            connection.execute("DELETE FROM unfinished_jobs WHERE id = ?", [job_id])

    def interrupted(self, owner: str) -> list[UnfinishedJob]:
        """The owner's jobs of servers that live no more, the oldest first."""
        rows = self._store.rows(
            "SELECT * FROM unfinished_jobs WHERE owner = ? ORDER BY created_at", [owner]
        )
        return [
            UnfinishedJob(
                row["id"],
                row["owner"],
                GenerationRequest.from_dict(json.loads(row["request"])),
                datetime.fromisoformat(row["created_at"]).astimezone(UTC),
            )
            for row in rows
            if not self._is_alive(row["server"])
        ]

    def get(self, job_id: str, owner: str) -> UnfinishedJob:
        """One interrupted job of this owner; raises NotFound for any other."""
        for job in self.interrupted(owner):
            if job.id == job_id:
                return job
        raise NotFound(f"There is no interrupted job {job_id!r}.")

    def _is_alive(self, server: str) -> bool:
        if server == self._server:
            return True
        try:
            return _server(psutil.Process(int(server.partition("@")[0]))) == server
        except (psutil.Error, ValueError):
            return False


def _server(process: psutil.Process) -> str:
    # The time of birth tells a process from a later one of the same number.
    return f"{process.pid}@{process.create_time():.2f}"
