"""`--share`: the link and its QR code on the terminal and the page, and a failing tunnel."""

from __future__ import annotations

import gc
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zxingcpp
from gradio.tunneling import BINARY_FILENAME
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from canvas import Studio
from canvas.server.launch import launch
from canvas.settings import Settings
from tests.ui.conftest import TIMEOUT

ROOT = Path(__file__).resolve().parent.parent.parent
HALVES = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}


def read_codes(image: Image.Image) -> list[str]:
    return [code.text for code in zxingcpp.read_barcodes(image)]


def render_terminal(text: str) -> Image.Image:
    """An image of half blocks on a dark terminal, four pixels per block."""
    lines = [line for line in text.splitlines() if set(line) & set("▀▄█")]
    width = max(map(len, lines))
    image = Image.new("L", (width, 2 * len(lines)))
    for row, line in enumerate(lines):
        for column, mark in enumerate(line):
            for half in (0, 1):
                image.putpixel((column, 2 * row + half), 255 * HALVES[mark][half])
    return image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[str]:
    """The output of `python app.py --share` until the link is open."""
    program = tmp_path / "hub" / "gradio" / "frpc" / BINARY_FILENAME
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.tunnel "$@"\n')
    program.chmod(0o755)
    environ = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hub"),
        "GRADIO_SHARE_SERVER_ADDRESS": "127.0.0.1:7000",
        "CANVAS_DATA_DIR": str(tmp_path / "data"),
        "CANVAS_CACHE_DIR": str(tmp_path / "cache"),
        "CANVAS_DEVICE": "cpu",
        "CANVAS_DTYPE": "float32",
    }
    command = [sys.executable, "app.py", "--share", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        try:
            assert child.stderr
            output = ""
            while "only their own" not in output:
                line = child.stderr.readline().decode()
                assert line, output
                output += line
            yield output
        finally:
            child.terminate()


def test_the_link_is_printed_with_its_qr_code_and_works(shared: str, browser: Browser) -> None:
    [address] = set(re.findall(r"http://127\.0\.0\.1:\d+", shared))
    expect.set_options(timeout=TIMEOUT)
    assert read_codes(render_terminal(shared)) == [address]
    assert "while this program runs" in shared
    with browser.new_context() as context:
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        page.goto(address)
        page.get_by_text("This page is public").click()
        code = page.get_by_role("img", name="QR code of the link")
        code.wait_for()
        assert read_codes(Image.open(io.BytesIO(code.screenshot()))) == [address]
        page.get_by_label("Prompt", exact=True).fill("a red boat")
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.locator(".result-images .result-details .prompt")).to_have_text("a red boat")
        page.get_by_role("tab", name="Models").click()
        expect(page.locator(".model").nth(1)).to_contain_text("not on this server")
        expect(page.get_by_role("button", name=re.compile("Download|Delete|Unload"))).to_have_count(0)


@pytest.fixture
def offline_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Browser) -> Iterator[Page]:
    """The page of a server started with `share` on a machine without a connection."""
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    settings = Settings(
        data_dir=tmp_path, cache_dir=tmp_path, port=0, device="cpu", dtype="float32", engine="torch", share=True
    )
    with Studio(settings) as studio, browser.new_context() as context:
        served = launch(studio, block=False)
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        page.goto(str(served.local_url))
        yield page
        served.close()
    gc.collect()


def test_without_a_tunnel_the_local_page_works(offline_page: Page, caplog: pytest.LogCaptureFixture) -> None:
    expect.set_options(timeout=TIMEOUT)
    expect(offline_page.locator("#banners")).to_contain_text("No public link: Could not get share link")
    offline_page.get_by_label("Prompt", exact=True).fill("a fox")
    offline_page.get_by_role("button", name="Generate", exact=True).click()
    expect(offline_page.locator(".result-images .result-details .prompt")).to_have_text("a fox")
    records = caplog.get_records("setup") + caplog.get_records("call")
    [line] = [record.message for record in records if "public link" in record.message]
    assert re.search(r"The page works on this machine: http://127.0.0.1:\d+", line)
