"""An executed notebook: a progress bar, then the images."""

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

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parent.parent.parent
BEGIN = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from canvas import GenerationRequest, Studio
from canvas.settings import Settings
folder = Path({folder!r})
settings = Settings(data_dir=folder, cache_dir=folder, device="cpu", dtype="float32", engine="torch")
studio = Studio(settings)
"""
CELLS = (
    "studio.generate(GenerationRequest('a <fox>', num_inference_steps=30, num_images=2))",
    "[image] = studio.generate(GenerationRequest('a hat', image_format='webp', num_inference_steps=1))\nimage",
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


def images_in(output: Any) -> list[Image.Image]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', output["data"]["text/html"])
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


def test_images_are_displayed(outputs: list[list[Any]]) -> None:
    shown = outputs[1][-1]
    assert shown["output_type"] == "execute_result"
    assert [image.size for image in images_in(shown)] == [(256, 256)] * 2
    assert 'alt="a &lt;fox&gt;"' in shown["data"]["text/html"]


def test_a_progress_bar_is_shown(outputs: list[list[Any]]) -> None:
    text = "".join(output.get("text", "") for output in outputs[1])
    assert "a <fox>" in text
    assert re.search(r"image \d of 2, step \d+ of 30", text)


def test_an_image_is_displayed_in_its_format(outputs: list[list[Any]]) -> None:
    [image] = images_in(outputs[2][-1])
    assert image.format == "WEBP"


def test_scripts_show_no_progress_bar(studio: Studio, capfd: pytest.CaptureFixture[str]) -> None:
    [image] = studio.generate(GenerationRequest("a hat", num_inference_steps=1))
    assert capfd.readouterr() == ("", "")
    assert image.file == studio.image_path(image.filename)


def test_an_image_without_its_file_is_shown_as_text(studio: Studio) -> None:
    [image] = studio.generate(GenerationRequest("a hat", num_inference_steps=1))
    assert image.file is not None
    image.file.unlink()
    assert image._repr_html_() is None
