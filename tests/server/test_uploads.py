"""Who may use an upload, and what is swept from the temporary folder."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from canvas.errors import InvalidInput
from canvas.jobs.inputs import TempFiles
from canvas.server import uploads
from canvas.server.uploads import MAX_AGE, UploadOwnerMiddleware, start_sweeping, sweep
from tests.server.asgi import call, http_scope, response_of


def owns(temp_files: TempFiles, path: Path, owner: str = "ann") -> bool:
    try:
        return temp_files.find(str(path), owner) == path
    except InvalidInput:
        return False


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(b"x")
    return paths


def upload(files: list[Path], *, owner: str | None = "ann", status: int = 200, **scope: Any) -> TempFiles:
    """The files that are registered after Gradio's response, which comes in three parts."""
    temp_files = TempFiles()
    answer = json.dumps([str(path) for path in files]).encode()
    parts = answer[:5], answer[5:9], answer[9:]
    middleware = UploadOwnerMiddleware(response_of(*parts, status=status), temp_files=temp_files)
    sent = call(middleware, http_scope(**{"path": "/gradio_api/upload", **scope}, state={"owner": owner}))
    assert b"".join(message.get("body", b"") for message in sent) == answer, "the response is unchanged"
    return temp_files


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/upload/"])
def test_the_files_of_an_upload_belong_to_its_owner(files: list[Path], path: str) -> None:
    temp_files = upload(files, path=path)
    assert [owns(temp_files, file) for file in files] == [True, True]
    assert not owns(temp_files, files[0], "bob")


@pytest.mark.parametrize("options", [{"path": "/gradio_api/config"}, {"status": 500}, {"owner": None}])
def test_other_responses_register_no_files(files: list[Path], options: dict[str, Any]) -> None:
    assert not owns(upload(files, **options), files[0])


def test_messages_of_other_kinds_pass() -> None:
    reached = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    middleware = UploadOwnerMiddleware(app, temp_files=TempFiles())
    call(middleware, {"type": "lifespan"})
    call(middleware, {"type": "websocket", "path": "/gradio_api/upload", "state": {"owner": "ann"}})
    assert reached == ["lifespan", "websocket"]


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2, follow_symlinks=False)


def test_only_old_files_and_empty_old_folders_are_swept(tmp_path: Path) -> None:
    names = ("old/old.png", "old/new.png", "empty/old.png", "new/old.png")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        age(tmp_path / name, 5 if "new.png" in name else 15)
    (tmp_path / "link").symlink_to(tmp_path / "old", target_is_directory=True)
    age(tmp_path / "link", 15)
    assert sweep(tmp_path, 10) == 4, "three files and a link"
    (tmp_path / "empty").mkdir(exist_ok=True)
    for folder in ("old", "empty"):
        age(tmp_path / folder, 15)
    assert sweep(tmp_path, 10) == 0, "folders do not count"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "new",
        "old",
        "old/new.png",
    ]


def test_sweeping_goes_on_until_the_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[Path]
) -> None:
    temp_files = TempFiles()
    for file in files:
        temp_files.register(file, "ann")
    remaining, swept = list(files), threading.Event()

    def sleep(_: float) -> None:
        """Another file becomes old; the thread stays here when all are swept."""
        if not remaining:
            swept.set()
            threading.Event().wait()
        age(remaining.pop(), MAX_AGE + 5)

    monkeypatch.setattr(uploads, "time", SimpleNamespace(time=time.time, sleep=sleep))
    start_sweeping(tmp_path, temp_files)
    assert swept.wait(30)
    assert list(tmp_path.iterdir()) == []
    for file in files:
        file.write_bytes(b"of somebody else")
    assert not any(owns(temp_files, file) for file in files), "they are forgotten"
