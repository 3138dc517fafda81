"""Runs the examples of the README against the running app."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from canvas.cli import main as cli
from tests.app_server import run_in_mcp_session

README = Path(__file__).resolve().parent.parent.parent / "README.md"
SECTION = README.read_text(encoding="utf-8").partition("## Use it from other programs")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", SECTION, re.DOTALL)
ADDRESS = "127.0.0.1:7860"


def blocks(language: str) -> list[str]:
    found = [code for kind, code in BLOCKS if kind == language]
    assert found
    return found


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANVAS_DEVICE", "cpu")
    monkeypatch.setenv("CANVAS_DTYPE", "float32")
    monkeypatch.setenv("CANVAS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CANVAS_PORT", "0")  # the doctor checks that it is free
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(code: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    address = url.removeprefix("http://")
    code = code.replace(ADDRESS, address).replace("port=7860", f"port={address.split(':')[1]}")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own README
    assert capsys.readouterr().out or Path("fox.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("sh"))
def test_command_lines_run(code: str, working_directory: Path) -> None:
    for line in code.splitlines():
        program, *arguments = shlex.split(line.removeprefix("python -m "))
        assert program == "canvas"
        with pytest.raises(SystemExit) as exit_info:
            cli.main(arguments)
        assert not exit_info.value.code, line
    assert list(working_directory.iterdir())


def test_the_mcp_address_has_the_tools(url: str) -> None:
    [code] = blocks("json")
    address = json.loads(code)["mcpServers"]["magic-canvas"]["url"]
    assert address == f"http://{ADDRESS}/gradio_api/mcp/"
    listed = run_in_mcp_session(url, lambda session: session.list_tools())
    assert "generate" in [tool.name for tool in listed.tools]
