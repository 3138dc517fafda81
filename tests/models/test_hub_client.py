"""The child process for the Hub: how it starts, fails and exits."""

from __future__ import annotations

import errno
import json
import os
import string
import subprocess
import sys
from pathlib import Path

import httpx
import httpx2
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from canvas.errors import CanvasError, DiskFull, DownloadFailed, HubOffline
from canvas.models import hub_worker
from canvas.models.hub_client import ERROR_MESSAGES, WORKER_PATH, Hub, HubStatus, call, check_hub, to_error
from tests.hub_server import Fault, LocalHub

ROOT = Path(__file__).resolve().parent.parent.parent
PLAN = """
from tests.conftest import make_spec
from canvas.models.download import plan_download
from canvas.errors import CanvasError
try:
    plan = plan_download(make_spec("tiny/diffusion"))
    print(len(plan.files), "files")
except CanvasError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def client(hub: LocalHub, tmp_path: Path) -> Hub:
    return Hub(hub.url, tmp_path / "cache", "secret")


@pytest.mark.parametrize("kind", sorted(ERROR_MESSAGES))
def test_every_error_kind_has_a_complete_message(kind: str) -> None:
    event = {"error": kind, "detail": "a {detail}", "status": 500}
    error = to_error("org/model", event)
    assert isinstance(error, CanvasError)
    without = str(error).replace("a {detail}", "")
    assert [name for _, name, _, _ in string.Formatter().parse(without) if name] == []


def test_every_error_kind_has_a_message() -> None:
    kinds = {kind for _, kind in hub_worker.ERROR_KINDS}
    assert kinds <= ERROR_MESSAGES.keys()
    assert set().union(*hub_worker.RETRYABLE.values()) <= ERROR_MESSAGES.keys()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_disk_full(number: int) -> None:
    event = hub_worker.error_event(OSError(number, os.strerror(number)))
    error = to_error("org/model", event)
    assert isinstance(error, DiskFull)
    assert "free some space" in str(error)


def test_wrapped_exception_is_unwrapped() -> None:
    error = LocalEntryNotFoundError("cannot find the file")
    error.__cause__ = httpx2.ConnectError("refused")
    assert isinstance(to_error("org/model", hub_worker.error_event(error)), HubOffline)


def test_unknown_exception_is_raised_again() -> None:
    with pytest.raises(ValueError, match="unknown"):
        hub_worker.error_event(ValueError("unknown"))


def test_crash_of_the_process_is_download_failed(client: Hub) -> None:
    with pytest.raises(DownloadFailed, match="ended unexpectedly: KeyError: 'dance'"):
        call(client, {"action": "dance", "repo_id": "org/model"})


def test_unwritable_cache_is_download_failed(client: Hub, hub: LocalHub, tiny_repo: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    files = {"vae/config.json": {"size": 1, "etag": "0"}}
    task = {"action": "fetch", "repo_id": tiny_repo, "revision": hub.revision(tiny_repo)}
    with pytest.raises(DownloadFailed, match="cache folder cannot be used"):
        call(client, {**task, "files": files})


def test_token_is_sent(client: Hub, hub: LocalHub, tiny_repo: str) -> None:
    reported: list[int] = []
    call(client, {"action": "list", "repo_id": tiny_repo}, on_bytes=reported.append)
    assert reported == [0]
    assert hub.tokens == {"Bearer secret"}


def test_process_exits_when_stdin_closes(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    hub.faults[tiny_repo] = Fault.silent()
    child = subprocess.Popen(
        [sys.executable, "-P", str(WORKER_PATH)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin and child.stdout
    task = {"action": "list", "repo_id": tiny_repo, "endpoint": hub.url, "token": None, "timeout": 600}
    child.stdin.write(json.dumps(task) + "\n")
    child.stdin.flush()
    assert json.loads(child.stdout.readline()) == {"bytes": 0}
    child.stdin.close()  # what the system does when the parent dies
    assert child.wait(timeout=60) == 1
    child.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "expected"),
    [({}, "13 files"), ({"HF_HUB_OFFLINE": "1"}, "HubOffline HF_HUB_OFFLINE is set; unset it")],
)
def test_library_environment_variables_apply(
    hub: LocalHub, tiny_repo: str, tmp_path: Path, variable: dict[str, str], expected: str
) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), **variable}
    done = subprocess.run(
        [sys.executable, "-c", PLAN], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(expected)


@pytest.mark.parametrize(
    ("token", "status", "expected"),
    [
        ("secret", 200, HubStatus(user="ann")),
        ("secret", 401, HubStatus(auth_error="is invalid; create a new one at https://huggingface.co/settings/tokens")),
        ("secret", 403, HubStatus(auth_error="is invalid; create a new one at https://huggingface.co/settings/tokens")),
        ("secret", 404, HubStatus()),
        ("secret", 500, HubStatus(offline="returned status 500; try again later")),
        ("secret", 503, HubStatus(offline="returned status 503; try again later")),
        (None, 200, HubStatus()),
        (None, 401, HubStatus()),
        (None, 0, HubStatus(offline="cannot be reached (ConnectError); check the connection")),
    ],
)
def test_check_hub_says_who_owns_the_token_or_what_is_wrong(
    token: str | None, status: int, expected: HubStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(url: str, *, headers: dict[str, str], follow_redirects: bool, **_: object) -> httpx.Response:
        assert (url, follow_redirects) == ("http://hub/api/whoami-v2", True)
        assert headers == ({"Authorization": "Bearer secret"} if token else {})
        if not status:
            raise httpx.ConnectError("refused")
        return httpx.Response(status, json={"name": "ann"})

    monkeypatch.setattr(httpx, "get", get)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert check_hub("http://hub", token) == expected


def test_check_hub_asks_nothing_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert check_hub("http://127.0.0.1:9", "secret").offline.startswith("HF_HUB_OFFLINE is set")
