"""`deploy` with the real huggingface_hub and a local server in place of the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from canvas.cli.deploy_space import ROOT, check_space_id, collect_files
from canvas.errors import InvalidInput
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
