"""Jobs that are not done yet, on disk, so that a restart can offer to run them again."""

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
    """A job whose server went away before it was done."""

    id: str
    owner: str
    request: GenerationRequest
    created_at: datetime


class PendingJobStore:
    """What this server has accepted and not finished, and what dead servers have left."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self._server = _process_id(os.getpid())
        self._ended: list[str] = []  # and still in the table
        self._forgetting = threading.Lock()  # jobs end in several threads

    def add(self, job: PendingJob) -> None:
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

    def remove_eventually(self, job_id: str) -> None:
        """`remove` after the end: at once or, while the database takes nothing, with the next."""
        with self._forgetting:
            self._ended.append(job_id)
            while self._ended:
                try:
                    self.remove(self._ended[0])
                except StorageError as error:
                    log.warning("An ended job is still noted as unfinished: %s", error)
                    return
                del self._ended[0]

    def orphaned(self, owner: str) -> list[PendingJob]:
        """The owner's jobs of servers that live no more, the oldest first."""
        rows = self._store.rows(
            "SELECT * FROM unfinished_jobs WHERE owner = ? ORDER BY created_at", [owner]
        )
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
        """One interrupted job of this owner; raises NotFound for any other."""
        for job in self.orphaned(owner):
            if job.id == job_id:
                return job
        raise NotFound(f"There is no interrupted job {job_id!r}.")

    def _is_alive(self, server: str) -> bool:
        if server == self._server:
            return True
        try:
            return _process_id(int(server.partition("@")[0])) == server
        except (psutil.Error, OSError, ValueError):
            return False


def _process_id(pid: int) -> str:
    # The birth tells a process from a later one of the same number. psutil counts it from the
    # clock, which may be set meanwhile; Linux knows it since the start of the machine, too.
    if sys.platform != "linux":
        return f"{pid}@{psutil.Process(pid).create_time():.2f}"
    born = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{pid}@{born}-{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
