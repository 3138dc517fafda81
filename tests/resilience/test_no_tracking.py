"""What the program tells nobody: secrets, others' prompts, and anything to other hosts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from typer.testing import CliRunner

from canvas.catalog import MODELS
from canvas.cli.main import app
from canvas.history.api_keys import ApiKeyStore
from canvas.history.database import Database
from tests.hub import LocalHub
from tests.resilience.consistency import address_of, ended, program
from tests.visitors import Visitor

TOKEN = "hf_" + "QuetzalFjordVelvet" * 2
PASSWORD = "xylographer-below-saffron"  # noqa: S105
REMOTE_KEY = "mc-" + "OsprayThimbleGorse" * 2
CLOSED = "http://127.0.0.1:9"  # nothing listens there
WISHES: list[dict[str, Any]] = [
    {},
    {"model": "small", "size": "256x256"},
    {"model": TOKEN[:-1]},
    {"n": "x"},
    {"n": 3},
    {"backend": "remote"},
]

# Python runs a sitecustomize at its start, in the processes that it starts, too.
LISTENER = """
import os, sys
def hear(event, arguments):
    if event == "socket.getaddrinfo":
        where = arguments[:2]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        where = arguments[1][:2]
    else:
        return
    with open({log!r}, "a") as log:
        log.write("{{}} {{}}\\n".format(*where))
sys.addaudithook(hear)
"""


def picture(url: str, key: str = "", **changes: Any) -> httpx.Response:
    body = {"prompt": "a fox", "model": "starter", "num_inference_steps": 1, "size": "128x128"}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(
        f"{url}/v1/images/generations", json=body | changes, headers=headers, timeout=120
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nobody_hears_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    environ = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": CLOSED, "HF_HOME": str(tmp_path / "hf")}
    changes = [f"auth=ann:{PASSWORD}", f"remote={CLOSED}", f"remote_key={REMOTE_KEY}"]
    with program("serve", data, *changes, log=log, **environ) as child:
        url = address_of(child)
        store = Database(data / "ai_images.db")
        key = ApiKeyStore(store).create("robot")
        store.close()
        told: list[bytes] = []
        refused: set[int] = set()
        for wish in WISHES:
            answer = picture(url, key, **wish)
            refused.add(answer.status_code)
            told.append(answer.content)
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client:
            for path in ("/", "/config", "/healthz", "/metrics", "/docs", "/openapi.json"):
                told.append(client.get(path).content)
            told += [client.get("/gradio_api/info").content, client.get("/export.zip").content]
            client.post("/login", data={"username": "ann", "password": PASSWORD + "?"})
            told.append(client.get("/gradio_api/user").content)
        assert ended(child) == 0
    for name, value in {**environ, "CANVAS_REMOTE_KEY": REMOTE_KEY}.items():
        monkeypatch.setenv(name, value)
    report = CliRunner().invoke(app, ["doctor", "--data-dir", str(data)])
    assert "data folder" in report.output
    places = {"answers": b"".join(told), "log": log.read_bytes(), "doctor": report.output.encode()}
    places |= files(data)
    assert len(places) > 5
    assert refused >= {200, 503, 404, 400}, "the Hub was asked, and could not be reached"
    for name, content in places.items():
        for secret in (TOKEN, PASSWORD, REMOTE_KEY, key):
            assert secret.encode() not in content, name


def test_the_log_of_a_public_server_tells_no_prompt(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with program("crowd", tmp_path / "data", log=log, HF_ENDPOINT=CLOSED) as child:
        visitor = Visitor(address_of(child))
        generate = visitor.event("page_generate")
        long = "quetzalfinch " * 300
        for wish in (
            {"Prompt": "quetzalfinch", "Steps": 1},
            {"Prompt": long, "Steps": 1},
            {"Prompt": "quetzalfinch (((:9)", "Steps": 1, "Prompt_weights": True},
            {"Prompt": "quetzalfinch <lora:none:1>", "Steps": 1},
            {"Prompt": "quetzalfinch", "Steps": -5},
            {"Prompt": "quetzalfinch", "Model": "tiny"},
        ):
            visitor.call(generate, visitor.data_of(generate, **wish))
        visitor.ask("GET", "/gradio_api/call/quetzalfinch")
        visitor.close()
        while True:
            child.stdin.write("report\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            jobs = json.loads(child.stdout.readline())  # type: ignore[union-attr]
            if all(job["status"] in ("done", "failed", "cancelled") for job in jobs):
                break
        assert {job["status"] for job in jobs} >= {"done"}
        assert ended(child) == 0
    assert "quetzalfinch" not in log.read_text()


def test_nothing_is_asked_of_any_host_but_the_hub(tmp_path: Path) -> None:
    heard, listener = tmp_path / "heard", tmp_path / "listener"
    listener.mkdir()
    (listener / "sitecustomize.py").write_text(LISTENER.format(log=str(heard)))
    folder = tmp_path / "model"
    shutil.copytree(MODELS["starter"].name, folder)
    hub = LocalHub()
    try:
        hub.add("an/owner", folder)
        data = tmp_path / "data"
        data.mkdir()
        (data / "models.toml").write_text(
            '[fetched]\nname = "an/owner"\nsize = "1 MB"\nspeed = "Fast"\nquality = "Good"\n'
            'resolution = 256\ntype = "stable_diffusion"\n'
        )
        environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        environ["PYTHONPATH"] = str(listener)
        with program("serve", data, log=tmp_path / "log", **environ) as child:
            url = address_of(child)
            for changes in ({"model": "starter"}, {"model": "fetched"}):
                assert picture(url, **changes).status_code == 200
            page = httpx.get(url).text + httpx.get(f"{url}/docs").text
            assert ended(child) == 0
        assert hub.fetched("an/owner"), "it was fetched"
    finally:
        hub.close()
    said = set(heard.read_text().split("\n")) - {""}
    ports = {str(urlsplit(place).port) for place in (url, hub.url)}
    assert {line.rpartition(" ")[2] for line in said} >= ports, "the listener hears"
    for line in said:
        host = line.rpartition(" ")[0]
        assert re.fullmatch(r"127\.0\.0\.1|::1|localhost|0\.0\.0\.0|None|b'127.0.0.1'", host), line
    for address in re.findall(r"""(?:src|href)=["'](https?://[^"']+)""", page):
        assert urlsplit(address).hostname in ("127.0.0.1", "localhost"), address
