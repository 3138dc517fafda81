"""Many visitors on a public server, and many images in one process."""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from canvas.history.database import Database
from canvas.server.identity import COOKIE, visitor_owner_id
from tests.resilience.conftest import Report
from tests.resilience.consistency import assert_consistent, read_url, run_program, send_line, wait_for_exit
from tests.visitors import Visitor

WORD = re.compile(rb"visitor\d{3}")
LONG_SECONDS = 600
FINAL_STATUSES = ("done", "cancelled", "failed")


@dataclass
class RandomVisitor:
    """Acts at random; `word` is in all prompts of this visitor and in no others."""

    number: int
    url: str
    accepted: int = 0
    rejected: int = 0
    reloads: list[float] = field(default_factory=list)  # seconds

    def __post_init__(self) -> None:
        self.rng = random.Random(self.number)
        self.word = f"visitor{self.number:03d}"
        self.browser = Visitor(self.url)
        self.owner = visitor_owner_id(self.browser.client.cookies[COOKIE].partition(".")[0])

    def run(self, max_jobs: int | None, seconds: float) -> None:
        """Submit three jobs at a time, then reload, poll or cancel at random.

        Without `max_jobs` it pauses like a person; 50 visitors in a tight loop would measure
        only each other.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until and (max_jobs is None or self.accepted < max_jobs):
            for _ in range(3):
                self.submit()
            for _ in range(self.rng.randint(1, 4)):
                if max_jobs is None:
                    time.sleep(self.rng.uniform(0, 10))
                self.rng.choice([self.reload, self.poll, self.stop, self.remove])()
        self.poll()
        self.browser.close()

    def submit(self) -> None:
        event = self.browser.event("page_generate")
        values = {"Prompt": f"a fox {self.word}", "Steps": self.rng.randint(1, 4)}
        messages = self.call(event, **values)
        if b'"success":true' in messages.replace(b" ", b""):
            self.accepted += 1
        else:
            assert b"jobs in the queue" in messages, messages[-500:]
            self.rejected += 1

    def call(self, event: dict[str, Any], event_data: Any = None, **values: Any) -> bytes:
        messages = self.browser.call(event, self.browser.inputs_of(event, **values), event_data)
        assert set(WORD.findall(messages)) <= {self.word.encode()}, "an image of another visitor"
        return messages

    def reload(self) -> None:
        start = time.monotonic()
        assert self.browser.client.get("/").status_code == 200
        self.reloads.append(time.monotonic() - start)
        self.browser.session = f"{self.rng.getrandbits(40):010x}"

    def poll(self) -> bytes:
        return self.call(self.browser.event("poll_1"))

    def stop(self) -> None:
        self.call(self.browser.event("stop"))

    def remove(self) -> None:
        jobs = re.findall(rb'data-job=\\?"(\w{32})', self.poll())
        if jobs:
            click = {"action": "remove", "job": self.rng.choice(jobs).decode()}
            self.call(self.browser.event("on_click"), click)


SCALES = [
    pytest.param(6, 2, 60.0, id="short"),
    pytest.param(50, None, LONG_SECONDS, id="long", marks=[pytest.mark.long, pytest.mark.timeout(1500)]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "max_jobs", "seconds"), SCALES)
def test_many_visitors_on_a_public_server(
    tmp_path: Path, report: Report, count: int, max_jobs: int | None, seconds: float
) -> None:
    with run_program("serve-public", tmp_path / "data") as child:
        url = read_url(child)
        server = psutil.Process(child.pid)
        RandomVisitor(0, url).run(3, 60)  # loads the model and the routes
        jobs = wait_for_jobs(child)
        visitors = [RandomVisitor(number, url) for number in range(1, count + 1)]
        handles = server.num_fds()
        with ThreadPoolExecutor(count) as pool:
            visits = [pool.submit(visitor.run, max_jobs, seconds) for visitor in visitors]
            memory = sample_memory(server, visits)
        jobs = wait_for_jobs(child)
        assert server.num_fds() <= handles + 20, "file handles leak"
        handles_after = server.num_fds()
        assert wait_for_exit(child) == 0
    owners = {visitor.owner for visitor in visitors}
    for visitor in visitors:
        own = [job for job in jobs if job["owner"] == visitor.owner]
        assert len(own) == visitor.accepted, "a job is missing"
        assert {job["prompt"] for job in own} <= {f"a fox {visitor.word}"}
    for job in jobs:
        assert job["status"] in FINAL_STATUSES
        assert job["error"] or job["status"] == "done"
        assert set(job["owners"]) <= {job["owner"]}, "an image of another owner"
    assert_fair([job for job in jobs if job["owner"] in owners])
    done = [job for job in jobs if job["status"] == "done"]
    assert assert_consistent(tmp_path / "data") >= len(done)
    with closing(Database(tmp_path / "data" / "ai_images.db")) as database:
        assert database.rows("SELECT * FROM unfinished_jobs") == [], "a finished job is left"
    reloads = sorted(seconds for visitor in visitors for seconds in visitor.reloads)
    slowest = reloads[len(reloads) * 95 // 100]
    fifth = len(memory) // 5 + 1
    early, late = (statistics.median(part) for part in (memory[fifth:][:fifth], memory[-fifth:]))
    if max_jobs is None:
        assert slowest < 0.3
        assert late < 1.05 * early, memory
    totals = {status: sum(job["status"] == status for job in jobs) for status in FINAL_STATUSES}
    report(
        f"{count} visitors on a public server for {seconds / 60:.0f} minutes, three jobs at a "
        "time, reloading and cancelling at random",
        len(jobs),
        "jobs",
        f"nothing lost: {totals['done']:,} done, {totals['cancelled']:,} cancelled, "
        f"{totals['failed']:,} failed; memory {early / 1e6:.0f} MB in the second and "
        f"{late / 1e6:.0f} MB in the last fifth of the time, handles {handles} before and "
        f"{handles_after} after; page load {statistics.median(reloads):.2f} s (median of "
        f"{len(reloads):,}; 95 % within {slowest:.2f} s)",
    )


def sample_memory(server: psutil.Process, visits: list[Future[None]]) -> list[int]:
    """Resident memory in bytes every five seconds until all visits have ended."""
    memory = [server.memory_info().rss]
    waiting: set[Future[None]] = set(visits)
    while waiting:
        finished, waiting = wait(waiting, timeout=5)
        memory.append(server.memory_info().rss)
        for visit in finished:
            visit.result()
    return memory


def wait_for_jobs(child: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """All jobs of the server, when all have finished."""
    while True:
        jobs = json.loads(send_line(child, "jobs"))
        if all(job["status"] in FINAL_STATUSES for job in jobs):
            return list(jobs)


def assert_fair(jobs: list[dict[str, Any]]) -> None:
    """While a job waits, no other owner gets more turns than its own owner."""
    started = sorted((job for job in jobs if job["started_at"]), key=lambda job: job["started_at"])
    for job in started:
        meanwhile = [other for other in started if job["created_at"] < other["started_at"] < job["started_at"]]
        own = sum(other["owner"] == job["owner"] for other in meanwhile)
        for owner in {other["owner"] for other in meanwhile} - {job["owner"]}:
            turns = sum(other["owner"] == owner for other in meanwhile)
            assert turns <= own + 2, "one before the first turn and one already running"


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("count", "interval"), [(2000, 50)])
def test_memory_does_not_grow_while_models_change(tmp_path: Path, report: Report, count: int, interval: int) -> None:
    with run_program("switch-models", tmp_path / "data", count, interval) as child:
        samples = [json.loads(line) for line in child.stdout or ()]
        assert wait_for_exit(child) == 0
    memory = {number: rss for number, rss, _, _ in samples}
    handles = {number: handles for number, _, handles, _ in samples}
    loads = samples[-1][3]
    assert loads == count // interval
    assert assert_consistent(tmp_path / "data") == count
    if count < 2000:
        return
    assert abs(memory[2000] - memory[200]) < 0.05 * memory[200]
    assert handles[2000] <= handles[200] + 5
    peak = max(rss for number, rss in memory.items() if number >= 200)
    report(
        f"images in one process, with {loads} changes of the model",
        count,
        "images",
        f"nothing lost: memory {memory[200] / 1e6:.0f} MB at 200, {memory[2000] / 1e6:.0f} MB at "
        f"2,000, {peak / 1e6:.0f} MB at most between; handles {handles[200]} and "
        f"{handles[2000]}",
    )
