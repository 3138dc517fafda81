"""A notebook that is really executed: a bar while it waits, then the picture itself."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from canvas import GenerationRequest, Studio

ROOT = Path(__file__).resolve().parent.parent.parent
BEGIN = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from canvas import GenerationRequest, Studio
from canvas.settings import Settings
folder = Path({folder!r})
settings = Settings(data_dir=folder, cache_dir=folder, device="cpu", dtype="float32")
studio = Studio(settings)
"""
CELLS = (
    "studio.generate(GenerationRequest('a <fox>', num_inference_steps=30, num_images=2))",
    "[picture] = studio.generate(GenerationRequest('a hat', image_format='webp', "
    "num_inference_steps=1))\npicture",
    "studio.close()",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    folder = str(tmp_path_factory.mktemp("notebook"))
    begin = BEGIN.format(root=str(ROOT), folder=folder)
    cells = [nbformat.v4.new_code_cell(code) for code in (begin, *CELLS)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    return [cell.outputs for cell in notebook.cells]


def pictures_in(output: Any) -> list[Image.Image]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', output["data"]["text/html"])
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


def test_the_pictures_show_themselves(outputs: list[list[Any]]) -> None:
    shown = outputs[1][-1]
    assert shown["output_type"] == "execute_result"
    assert [picture.size for picture in pictures_in(shown)] == [(256, 256)] * 2
    assert 'alt="a &lt;fox&gt;"' in shown["data"]["text/html"]


def test_a_bar_tells_how_far_it_is(outputs: list[list[Any]]) -> None:
    words = "".join(output.get("text", "") for output in outputs[1])
    assert "a <fox>" in words
    assert re.search(r"picture \d of 2, step \d+ of 30", words)


def test_one_picture_shows_itself_in_its_format(outputs: list[list[Any]]) -> None:
    [picture] = pictures_in(outputs[2][-1])
    assert picture.format == "WEBP"


def test_a_script_sees_no_bar(studio: Studio, capfd: pytest.CaptureFixture[str]) -> None:
    [picture] = studio.generate(GenerationRequest("a hat", num_inference_steps=1))
    assert capfd.readouterr() == ("", "")
    assert picture.file == studio.image_path(picture.filename)


def test_a_picture_without_its_file_is_told_in_words(studio: Studio) -> None:
    [picture] = studio.generate(GenerationRequest("a hat", num_inference_steps=1))
    assert picture.file is not None
    picture.file.unlink()
    assert picture._repr_html_() is None
