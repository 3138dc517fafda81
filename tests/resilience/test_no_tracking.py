"""Secrets and prompts are not disclosed, and no host but the Hub is contacted."""

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
from tests.hub_server import LocalHub
from tests.resilience.consistency import read_url, run_program, send_line, wait_for_exit
from tests.visitors import Visitor

TOKEN = "hf_" + "QuetzalFjordVelvet" * 2
PASSWORD = "xylographer-below-saffron"  # noqa: S105
REMOTE_KEY = "mc-" + "OsprayThimbleGorse" * 2
CLOSED = "http://127.0.0.1:9"  # nothing listens there
REQUESTS: list[dict[str, Any]] = [
    {},
    {"model": "small", "size": "256x256"},
    {"model": TOKEN[:-1]},
    {"n": "x"},
    {"n": 3},
    {"backend": "remote"},
]

# Python runs a sitecustomize module at start, also in child processes.
SITECUSTOMIZE = """
import os, sys
def log_address(event, arguments):
    if event == "socket.getaddrinfo":
        address = arguments[:2]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        address = arguments[1][:2]
    else:
        return
    with open({log!r}, "a") as log:
        log.write("{{}} {{}}\\n".format(*address))
sys.addaudithook(log_address)
"""


def generate(url: str, key: str = "", **changes: Any) -> httpx.Response:
    body = {"prompt": "a fox", "model": "starter", "num_inference_steps": 1, "size": "128x128"}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{url}/v1/images/generations", json=body | changes, headers=headers, timeout=120)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_secrets_are_in_no_response_file_or_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    environ = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": CLOSED, "HF_HOME": str(tmp_path / "hf")}
    options = [f"auth=ann:{PASSWORD}", f"remote={CLOSED}", f"remote_key={REMOTE_KEY}"]
    with run_program("serve", data, *options, log=log, **environ) as child:
        url = read_url(child)
        database = Database(data / "ai_images.db")
        key = ApiKeyStore(database).create("robot")
        database.close()
        contents: list[bytes] = []
        statuses: set[int] = set()
        for changes in REQUESTS:
            response = generate(url, key, **changes)
            statuses.add(response.status_code)
            contents.append(response.content)
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client:
            for path in ("/", "/config", "/healthz", "/metrics", "/docs", "/openapi.json"):
                contents.append(client.get(path).content)
            contents += [client.get("/gradio_api/info").content, client.get("/export.zip").content]
            client.post("/login", data={"username": "ann", "password": PASSWORD + "?"})
            contents.append(client.get("/gradio_api/user").content)
        assert wait_for_exit(child) == 0
    for name, value in {**environ, "CANVAS_REMOTE_KEY": REMOTE_KEY}.items():
        monkeypatch.setenv(name, value)
    report = CliRunner().invoke(app, ["doctor", "--data-dir", str(data)])
    assert "data folder" in report.output
    outputs = {"responses": b"".join(contents), "log": log.read_bytes(), "doctor": report.output.encode()}
    outputs |= files(data)
    assert len(outputs) > 5
    assert statuses >= {200, 503, 404, 400}, "503: the Hub could not be reached"
    for name, content in outputs.items():
        for secret in (TOKEN, PASSWORD, REMOTE_KEY, key):
            assert secret.encode() not in content, name


@pytest.mark.long
def test_log_of_a_public_server_has_no_prompts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run_program("serve-public", tmp_path / "data", log=log, HF_ENDPOINT=CLOSED) as child:
        visitor = Visitor(read_url(child))
        generate = visitor.event("page_generate")
        long = "quetzalfinch " * 300
        for values in (
            {"Prompt": "quetzalfinch", "Steps": 1},
            {"Prompt": long, "Steps": 1},
            {"Prompt": "quetzalfinch (((:9)", "Steps": 1, "Prompt_weights": True},
            {"Prompt": "quetzalfinch <lora:none:1>", "Steps": 1},
            {"Prompt": "quetzalfinch", "Steps": -5},
            {"Prompt": "quetzalfinch", "Model": "tiny"},
        ):
            visitor.call(generate, visitor.inputs_of(generate, **values))
        visitor.request("GET", "/gradio_api/call/quetzalfinch")
        visitor.close()
        while True:
            jobs = json.loads(send_line(child, "jobs"))
            if all(job["status"] in ("done", "failed", "cancelled") for job in jobs):
                break
        assert {job["status"] for job in jobs} >= {"done"}
        assert wait_for_exit(child) == 0
    assert "quetzalfinch" not in log.read_text()


@pytest.mark.slow
def test_no_host_but_the_hub_is_contacted(tmp_path: Path) -> None:
    log, site = tmp_path / "addresses", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE.format(log=str(log)))
    folder = tmp_path / "model"
    shutil.copytree(MODELS["starter"].name, folder)
    hub = LocalHub()
    try:
        hub.add("an/owner", folder)
        data = tmp_path / "data"
        data.mkdir()
        (data / "models.toml").write_text(
            '[downloaded]\nname = "an/owner"\nsize = "1 MB"\nspeed = "Fast"\nquality = "Good"\n'
            'resolution = 256\ntype = "stable_diffusion"\n'
        )
        environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        environ["PYTHONPATH"] = str(site)
        with run_program("serve", data, log=tmp_path / "log", **environ) as child:
            url = read_url(child)
            for changes in ({"model": "starter"}, {"model": "downloaded"}):
                assert generate(url, **changes).status_code == 200
            page = httpx.get(url).text + httpx.get(f"{url}/docs").text
            assert wait_for_exit(child) == 0
        assert hub.fetched("an/owner"), "the model was downloaded"
    finally:
        hub.close()
    addresses = set(log.read_text().splitlines())
    ports = {str(urlsplit(server).port) for server in (url, hub.url)}
    assert {address.rpartition(" ")[2] for address in addresses} >= ports, "the hook works"
    for address in addresses:
        host = address.rpartition(" ")[0]
        assert re.fullmatch(r"127\.0\.0\.1|::1|localhost|0\.0\.0\.0|None|b'127.0.0.1'", host), address
    for link in re.findall(r"""(?:src|href)=["'](https?://[^"']+)""", page):
        assert urlsplit(link).hostname in ("127.0.0.1", "localhost"), link
