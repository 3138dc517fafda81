"""The process that talks to the Hub: how it starts, fails and ends."""

from __future__ import annotations

import errno
import json
import os
import string
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from canvas.errors import CanvasError, DiskFull, DownloadFailed, HubOffline
from canvas.models import hub_worker
from canvas.models.hub_client import ERROR_MESSAGES, PROGRAM, Hub, call, to_error
from tests.hub import Fault, LocalHub

ROOT = Path(__file__).resolve().parent.parent.parent
PLAN = """
from tests.conftest import make_spec
from canvas.models.download import plan_download
from canvas.errors import CanvasError
try:
    plan = plan_download(make_spec("tiny/diffusion"), half_precision=False)
    print(len(plan.files), "files")
except CanvasError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def here(hub: LocalHub, tmp_path: Path) -> Hub:
    return Hub(hub.url, tmp_path / "cache", "secret")


@pytest.mark.parametrize("kind", sorted(ERROR_MESSAGES))
def test_every_failure_has_words(kind: str) -> None:
    event = {"error": kind, "detail": "a {detail}", "status": 500}
    error = to_error("org/model", event)
    assert isinstance(error, CanvasError)
    without = str(error).replace("a {detail}", "")
    assert [name for _, name, _, _ in string.Formatter().parse(without) if name] == []


def test_every_kind_that_is_told_has_words() -> None:
    told = {kind for _, kind in hub_worker.KINDS}
    assert told <= ERROR_MESSAGES.keys()
    assert set().union(*hub_worker.RETRYABLE.values()) <= ERROR_MESSAGES.keys()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_becomes_full(number: int) -> None:
    event = hub_worker.describe(OSError(number, os.strerror(number)))
    error = to_error("org/model", event)
    assert isinstance(error, DiskFull)
    assert "Free some space" in str(error)


def test_the_reason_inside_a_wrapped_failure_counts() -> None:
    error = LocalEntryNotFoundError("cannot find the file")
    error.__cause__ = httpx2.ConnectError("refused")
    assert isinstance(to_error("org/model", hub_worker.describe(error)), HubOffline)


def test_what_nobody_foresaw_is_not_put_into_words() -> None:
    with pytest.raises(ValueError, match="odd"):
        hub_worker.describe(ValueError("odd"))


def test_a_crash_of_the_process_is_told(here: Hub) -> None:
    with pytest.raises(DownloadFailed, match="ended unexpectedly: KeyError: 'dance'"):
        call(here, {"do": "dance", "repo_id": "org/model"})


def test_a_cache_that_cannot_be_written_is_told(
    here: Hub, hub: LocalHub, tiny_repo: str, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    files = {"vae/config.json": {"size": 1, "digest": "git:0"}}
    task = {"do": "fetch", "repo_id": tiny_repo, "revision": hub.revision(tiny_repo)}
    with pytest.raises(DownloadFailed, match="cache folder cannot be used"):
        call(here, {**task, "files": files})


def test_the_token_is_sent(here: Hub, hub: LocalHub, tiny_repo: str) -> None:
    call(here, {"do": "list", "repo_id": tiny_repo})
    assert hub.tokens == {"Bearer secret"}


def test_the_process_ends_with_its_parent(hub: LocalHub, here: Hub, tiny_repo: str) -> None:
    hub.faults[tiny_repo] = Fault.silent()
    child = subprocess.Popen(
        [sys.executable, "-P", str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin and child.stdout
    task = {"do": "list", "repo_id": tiny_repo, "endpoint": hub.url, "token": None, "timeout": 600}
    child.stdin.write(json.dumps(task) + "\n")
    child.stdin.flush()
    assert json.loads(child.stdout.readline()) == {"bytes": 0}
    child.stdin.close()  # what the system does when the parent dies
    assert child.wait(timeout=60) == 1
    child.stdout.close()


@pytest.mark.parametrize(
    ("variable", "expected"),
    [({}, "13 files"), ({"HF_HUB_OFFLINE": "1"}, "HubOffline HF_HUB_OFFLINE is set; unset it")],
)
def test_the_libraries_own_variables_count(
    hub: LocalHub, tiny_repo: str, tmp_path: Path, variable: dict[str, str], expected: str
) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), **variable}
    done = subprocess.run(
        [sys.executable, "-c", PLAN],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(expected)
