"""A crowd on a public server, and thousands of pictures in one process."""

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
from tests.resilience.conftest import Tell
from tests.resilience.consistency import address_of, asked, assert_whole, ended, program
from tests.visitors import Visitor

WORD = re.compile(rb"visitor\d{3}")
FAR = 600  # seconds of the long form
ENDS = ("done", "cancelled", "failed")


@dataclass
class Guest:
    """One visitor with a mind of their own; `word` is in all their prompts and in no other's."""

    number: int
    url: str
    accepted: int = 0
    refused: int = 0
    reloads: list[float] = field(default_factory=list)  # seconds

    def __post_init__(self) -> None:
        self.chance = random.Random(self.number)
        self.word = f"visitor{self.number:03d}"
        self.browser = Visitor(self.url)
        self.owner = visitor_owner_id(self.browser.client.cookies[COOKIE])

    def stay(self, wishes: int | None, seconds: float) -> None:
        """Ask for pictures, three at a time, and do what people do in between.

        Who stays for long looks at things for some seconds each time, as people do; otherwise
        50 programs in a circle would measure only each other.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until and (wishes is None or self.accepted < wishes):
            for _ in range(3):
                self.ask()
            for _ in range(self.chance.randint(1, 4)):
                if wishes is None:
                    time.sleep(self.chance.uniform(0, 10))
                self.chance.choice([self.reload, self.look, self.stop, self.remove])()
        self.look()
        self.browser.close()

    def ask(self) -> None:
        event = self.browser.event("page_generate")
        wish = {"Prompt": f"a fox {self.word}", "Steps": self.chance.randint(1, 4)}
        answer = self.call(event, **wish)
        if b'"success":true' in answer.replace(b" ", b""):
            self.accepted += 1
        else:
            assert b"waiting" in answer, answer[-500:]
            self.refused += 1

    def call(self, event: dict[str, Any], clicked: Any = None, **wish: Any) -> bytes:
        answer = self.browser.call(event, self.browser.data_of(event, **wish), clicked)
        assert set(WORD.findall(answer)) <= {self.word.encode()}, "somebody else's picture"
        return answer

    def reload(self) -> None:
        begun = time.monotonic()
        assert self.browser.client.get("/").status_code == 200
        self.reloads.append(time.monotonic() - begun)
        self.browser.session = f"{self.chance.getrandbits(40):010x}"

    def look(self) -> bytes:
        return self.call(self.browser.event("look_1"))

    def stop(self) -> None:
        self.call(self.browser.event("stop"))

    def remove(self) -> None:
        jobs = re.findall(rb'data-job=\\?"(\w{32})', self.look())
        if jobs:
            click = {"action": "remove", "job": self.chance.choice(jobs).decode()}
            self.call(self.browser.event("act"), click)


FORMS = [
    pytest.param(12, 3, 60.0, id="short"),
    pytest.param(50, None, FAR, id="long", marks=[pytest.mark.long, pytest.mark.timeout(1500)]),
]


@pytest.mark.parametrize(("number", "wishes", "seconds"), FORMS)
def test_a_crowd_on_a_public_server(
    tmp_path: Path, report: Tell, number: int, wishes: int | None, seconds: float
) -> None:
    with program("crowd", tmp_path / "data") as child:
        url = address_of(child)
        server = psutil.Process(child.pid)
        Guest(0, url).stay(3, 60)  # the model is loaded, the routes are warm
        jobs = wait_for_all(child)
        guests = [Guest(one, url) for one in range(1, number + 1)]
        handles = server.num_fds()
        with ThreadPoolExecutor(number) as pool:
            visits = [pool.submit(guest.stay, wishes, seconds) for guest in guests]
            memory = seen_over_time(server, visits)
        jobs = wait_for_all(child)
        assert server.num_fds() <= handles + 20, "handles stay"
        handles_after = server.num_fds()
        assert ended(child) == 0
    owners = {guest.owner: guest for guest in guests}
    for guest in guests:
        mine = [job for job in jobs if job["owner"] == guest.owner]
        assert len(mine) == guest.accepted, "every accepted job is there"
        assert {job["prompt"] for job in mine} <= {f"a fox {guest.word}"}
    for job in jobs:
        assert job["status"] in ENDS
        assert job["error"] or job["status"] == "done"
        assert set(job["owners"]) <= {job["owner"]}, "given to nobody else"
    assert_fair([job for job in jobs if job["owner"] in owners])
    done = [job for job in jobs if job["status"] == "done"]
    assert assert_whole(tmp_path / "data") >= len(done)
    with closing(Database(tmp_path / "data" / "ai_images.db")) as store:
        assert store.rows("SELECT * FROM unfinished_jobs") == [], "none is offered again"
    reloads = sorted(second for guest in guests for second in guest.reloads)
    page = reloads[len(reloads) * 95 // 100]
    fifth = len(memory) // 5 + 1
    early, late = (statistics.median(part) for part in (memory[fifth:][:fifth], memory[-fifth:]))
    if wishes is None:
        assert page < 0.3
        assert late < 1.05 * early, memory
    ends = {end: sum(job["status"] == end for job in jobs) for end in ENDS}
    report(
        f"{number} visitors on a public server for {seconds / 60:.0f} minutes, three pictures at "
        "a time, reloading, stopping and taking out of the queue at random",
        len(jobs),
        "jobs",
        f"nothing: {ends['done']:,} done, {ends['cancelled']:,} cancelled, {ends['failed']:,} "
        f"failed; memory {early / 1e6:.0f} MB in the second fifth of the time and "
        f"{late / 1e6:.0f} MB in the last, handles {handles} at first and {handles_after} after; "
        f"the page in {statistics.median(reloads):.2f} s (median of {len(reloads):,}; 95 % within "
        f"{page:.2f} s)",
    )


def seen_over_time(server: psutil.Process, visits: list[Future[None]]) -> list[int]:
    """The server's memory every five seconds, until all visits are over."""
    memory = [server.memory_info().rss]
    waiting: set[Future[None]] = set(visits)
    while waiting:
        over, waiting = wait(waiting, timeout=5)
        memory.append(server.memory_info().rss)
        for visit in over:
            visit.result()
    return memory


def wait_for_all(child: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """All jobs as soon as all have ended."""
    while True:
        jobs = json.loads(asked(child, "report"))
        if all(job["status"] in ENDS for job in jobs):
            return list(jobs)


def assert_fair(jobs: list[dict[str, Any]]) -> None:
    """While a job waits, nobody else gets more turns than its owner's own queue has places."""
    started = sorted((job for job in jobs if job["started_at"]), key=lambda job: job["started_at"])
    for job in started:
        meanwhile = [
            other
            for other in started
            if job["created_at"] < other["started_at"] < job["started_at"]
        ]
        own = sum(other["owner"] == job["owner"] for other in meanwhile)
        for owner in {other["owner"] for other in meanwhile} - {job["owner"]}:
            turns = sum(other["owner"] == owner for other in meanwhile)
            assert turns <= own + 2, "one more before the first turn, one that had begun"


@pytest.mark.parametrize(
    ("count", "each"),
    [
        pytest.param(60, 20, id="short"),
        pytest.param(2000, 50, id="long", marks=[pytest.mark.long, pytest.mark.timeout(1500)]),
    ],
)
def test_memory_stays_while_models_change(
    tmp_path: Path, report: Tell, count: int, each: int
) -> None:
    with program("soak", tmp_path / "data", count, each) as child:
        told = [json.loads(line) for line in child.stdout or ()]
        assert ended(child) == 0
    memory = {number: rss for number, rss, _, _ in told}
    handles = {number: handles for number, _, handles, _ in told}
    loads = told[-1][3]
    assert loads == count // each
    assert assert_whole(tmp_path / "data") == count
    if count < 2000:
        return
    assert abs(memory[2000] - memory[200]) < 0.05 * memory[200]
    assert handles[2000] <= handles[200] + 5
    most = max(rss for number, rss in memory.items() if number >= 200)
    report(
        f"pictures in one process, with {loads} changes of the model",
        count,
        "pictures",
        f"nothing: memory {memory[200] / 1e6:.0f} MB at 200, {memory[2000] / 1e6:.0f} MB at "
        f"2,000, {most / 1e6:.0f} MB at most in between; handles {handles[200]} and "
        f"{handles[2000]}",
    )
