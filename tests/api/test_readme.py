"""What the README says about clients, run as it stands there against the running app."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from canvas import Studio
from canvas.cli import main as cli

README = Path(__file__).resolve().parent.parent.parent / "README.md"
SECTION = README.read_text(encoding="utf-8").partition("## Use it from …")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", SECTION, re.DOTALL)
ADDRESS = "127.0.0.1:7860"


def blocks(language: str) -> list[str]:
    found = [code for kind, code in BLOCKS if kind == language]
    assert found
    return found


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANVAS_DEVICE", "cpu")
    monkeypatch.setenv("CANVAS_DTYPE", "float32")
    monkeypatch.setenv("CANVAS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CANVAS_PORT", "0")  # the doctor looks whether it is free
    return tmp_path


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    address = url.removeprefix("http://")
    code = code.replace(ADDRESS, address).replace("port=7860", f"port={address.split(':')[1]}")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - it is our own README
    assert capsys.readouterr().out or Path("fox.png").is_file()


@pytest.mark.parametrize("code", blocks("sh"))
def test_lines_of_the_terminal_run(code: str, here: Path) -> None:
    for line in code.splitlines():
        program, *arguments = shlex.split(line.removeprefix("python -m "))
        assert program == "canvas"
        with pytest.raises(SystemExit) as leaving:
            cli.main(arguments)
        assert not leaving.value.code, line
    assert list(here.iterdir())


def test_agents_find_the_server(url: str, served: Studio) -> None:
    [code] = blocks("json")
    address = json.loads(code)["mcpServers"]["magic-canvas"]["url"]

    async def ask() -> list[str]:
        there = address.replace(f"http://{ADDRESS}", url)
        async with (
            streamablehttp_client(there) as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            return [tool.name for tool in (await session.list_tools()).tools]

    assert "generate" in asyncio.run(ask())
