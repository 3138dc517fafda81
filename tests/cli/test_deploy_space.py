"""`deploy` with the real huggingface_hub and a local server in place of the Hub."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from canvas.cli import deploy_space
from canvas.cli import main as cli
from canvas.cli.deploy_space import ROOT, check_space_id, collect_files, upload
from canvas.errors import CanvasError, InvalidInput
from tests.space_hub import TOKEN, SpaceHub


@pytest.fixture
def hub() -> Iterator[SpaceHub]:
    server = SpaceHub()
    yield server
    server.close()


def deploy(hub: SpaceHub, *arguments: str, answer: str = "", token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """Run in a process: huggingface_hub reads the environment when it is imported."""
    environ = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",  # the local server speaks LFS only
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "canvas", "deploy", *arguments],
        cwd=ROOT,
        env=environ,
        input=answer,
        capture_output=True,
        text=True,
        check=False,
    )


def test_dry_run_lists_exactly_the_tracked_files(hub: SpaceHub) -> None:
    done = deploy(hub, "ann/canvas", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    listed = {line["path"]: line["size"] for line in map(json.loads, done.stdout.splitlines())}
    assert listed == {path: (ROOT / path).stat().st_size for path in listed}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    expected = {"README.md", "LICENSE", "app.py", "requirements.txt"} | {
        path
        for path in tracked
        if path.startswith(("canvas/", "assets/")) and not path.startswith(("canvas/training/", "assets/screenshots/"))
    }
    assert set(listed) == expected
    assert hub.spaces == {}


def test_private_files_are_not_collected(tmp_path: Path) -> None:
    private = (
        "ai_images.db",
        "outputs/2026-01-01/fox.png",
        "inputs/me.png",
        "models.toml",
        ".env",
        ".git/config",
        "canvas/.token.py",
        "canvas/keys.txt",
        "canvas/__pycache__/studio.py",
        "assets/starter/secret.key",
        "assets/.cache/thing.json",
        "tests/test_studio.py",
        "canvas/training/config.py",
    )
    for path in (*private, "app.py", "canvas/studio.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    (tmp_path / "canvas" / "link.py").symlink_to(tmp_path / ".env")
    assert [file.path for file in collect_files(tmp_path)] == ["app.py", "canvas/studio.py"]


@pytest.mark.slow
def test_space_is_created_after_confirmation_and_then_updated(hub: SpaceHub) -> None:
    declined = deploy(hub, "ann/canvas", answer="n\n")
    assert declined.returncode == 130
    assert "Upload" in declined.stderr
    assert "Upload" not in declined.stdout
    assert hub.spaces == {}

    created = deploy(hub, "ann/canvas", "--private", answer="y\n")
    assert created.returncode == 0, created.stderr
    assert f"{hub.url}/spaces/ann/canvas" in created.stdout
    [params] = hub.created
    assert (params["sdk"], params["type"]) == ("gradio", "space")
    assert "private" in str(params)
    space = hub.spaces["ann/canvas"]
    local = {file.path: (ROOT / file.path).read_bytes() for file in collect_files()}
    assert {path: space[path] for path in local} == local
    assert set(space) - set(local) == {".gitattributes"}

    space |= {"canvas/older.py": b"", "assets/older.css": b"", "notes.md": b"mine"}
    space["app.py"] = b"older"
    updated = deploy(hub, "ann/canvas", "--yes", "--json")
    assert updated.returncode == 0, updated.stderr
    assert set(space) - set(local) == {".gitattributes", "notes.md"}
    assert space["app.py"] == local["app.py"]
    assert len(hub.created) == 1
    for done in (declined, created, updated):
        assert TOKEN not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("status", "message"), [(403, "no write access"), (500, "status 500")])
def test_hub_errors_have_a_message(hub: SpaceHub, status: int, message: str) -> None:
    hub.error_status = status
    done = deploy(hub, "ann/canvas", "--yes")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_unreachable_hub_has_a_message(hub: SpaceHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "url", "http://127.0.0.1:9")  # nothing listens there
    done = deploy(hub, "ann/canvas", "--yes")
    assert done.returncode == 1
    assert "The upload to ann/canvas failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_invalid_token_is_not_printed(hub: SpaceHub) -> None:
    invalid = "hf_" + "x" * 30
    done = deploy(hub, "ann/canvas", "--yes", token=invalid)
    assert done.returncode == 1
    assert "Invalid Hugging Face token" in done.stderr
    assert invalid not in done.stdout + done.stderr


@pytest.mark.parametrize("space_id", ["canvas", "a/b/c", "/canvas", "../x", "ann/", "a b/c", ""])
def test_invalid_space_id_is_rejected(space_id: str) -> None:
    with pytest.raises(InvalidInput, match="USER/NAME"):
        check_space_id(space_id)


def test_the_longest_space_id_is_that_of_the_hub() -> None:
    check_space_id("ann/" + "x" * 92)
    with pytest.raises(InvalidInput, match="USER/NAME"):
        check_space_id("ann/" + "x" * 93)


class StubHub:
    """In place of `HfApi`: records its calls, or raises an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self._error = error

    def __call__(self) -> StubHub:
        return self

    def create_repo(self, space_id: str, **options: Any) -> str:
        self.calls.append(options)
        if self._error is not None:
            raise self._error
        return "https://hub.example/spaces/ann/canvas"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(options)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main(["deploy", "ann/canvas", *arguments])
    return int(raised.value.code or 0)


@pytest.mark.parametrize("private", [False, True])
def test_a_space_is_public_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], private: bool
) -> None:
    hub = StubHub()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    assert run("--yes", *["--private"] * private) == 0
    created, uploaded = hub.calls
    assert (created["private"], created["exist_ok"]) == (private, True)
    assert "app.py" in uploaded["allow_patterns"]
    assert "https://hub.example/spaces/ann/canvas" in capsys.readouterr().out
    assert upload("ann/canvas", []) == "https://hub.example/spaces/ann/canvas"
    assert hub.calls[2]["private"] is False


def test_nothing_is_uploaded_without_a_confirmation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = StubHub()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert run() == 130
    output = capsys.readouterr()
    assert "to the Space ann/canvas?" in output.err
    assert "to the Space" not in output.out
    assert run("--dry-run") == 0
    assert "nothing uploaded" in capsys.readouterr().out
    assert hub.calls == []


def test_deploy_needs_the_repository(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(deploy_space, "ROOT", tmp_path)
    assert run("--dry-run") == 1
    output = capsys.readouterr()
    assert "needs a clone of the repository" in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (400, "status 400"),
        (401, "Invalid Hugging Face token"),
        (402, "status 402"),
        (403, "no write access to ann/canvas"),
        (404, "ann/canvas cannot be found"),
        (405, "status 405"),
        (428, "status 428"),
        (429, "rate limit"),
        (430, "status 430"),
        (RuntimeError(""), "The upload to ann/canvas failed: RuntimeError. Try again."),
        (OSError("No route\nto the host"), "The upload to ann/canvas failed: No route. Try again."),
    ],
)
def test_errors_of_the_upload_are_explained(
    monkeypatch: pytest.MonkeyPatch, error: int | Exception, message: str
) -> None:
    if isinstance(error, int):
        address = httpx2.Request("POST", "https://hub.example")
        error = HfHubHTTPError("", response=httpx2.Response(error, request=address))
    monkeypatch.setattr("huggingface_hub.HfApi", StubHub(error))
    with pytest.raises(CanvasError, match=message):
        upload("ann/canvas", [])
