"""`edit`, `upscale`, the lists and `--version`; on a data folder with a server and without."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from canvas import GenerationRequest, Studio
from canvas.cli import main as cli
from canvas.cli.generate import OPTIONS
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES
from tests.app_server import serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with serving(tmp_path_factory.mktemp("served"), engine="torch") as studio:
        yield studio


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image of 128 x 96 pixels with holes, and a mask of its left half."""
    monkeypatch.setenv("CANVAS_DEVICE", "cpu")
    monkeypatch.setenv("CANVAS_DTYPE", "float32")
    monkeypatch.setenv("CANVAS_ENGINE", "torch")
    monkeypatch.setenv("CANVAS_CACHE_DIR", str(tmp_path / "cache"))
    image = Image.effect_noise((128, 96), 90).convert("RGBA")
    image.paste((0, 0, 0, 0), (60, 10, 90, 40))
    image.save(tmp_path / "image.png")
    mask = Image.new("L", (128, 96))
    mask.paste(255, (0, 0, 64, 96))
    mask.save(tmp_path / "mask.png")
    return tmp_path


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as raised:
        cli.main(list(arguments))
    captured = capfd.readouterr()
    return int(raised.value.code or 0), captured.out or captured.err


def test_every_field_of_a_request_has_an_option() -> None:
    # The files are arguments, the prompt is one, and the task is the command.
    assert {item.name for item in fields(GenerationRequest)} - set(OPTIONS) == {"prompt", "image", "mask_image", "task"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["edit", "image.png", "a fox", "--steps", "4", "--seed", "3", "--strength", "0.5"],
        ["edit", "image.png", "a fox", "--mask", "mask.png", "--steps", "2", "--seed", "3", "--mask-blur", "0"],
        ["edit", "image.png", "a fox", "--outpaint", "0,0,32,0", "--fill-color", "#f00f00", "--steps", "2",
         "--seed", "3"],
        ["upscale", "image.png", "--seed", "3", "--fill-color", "#00ff00"],
        ["generate", "a fox", "--steps", "2", "--seed", "3", "--width", "130", "--height", "1000", "--scale-to-size",
         "--preset", "turbo", "--watermark", "mine", "--variation-seed", "5", "--variation-strength", "0.3"],
    ],
)  # fmt: skip
def test_a_server_makes_the_same_image(
    server: Studio, images: Path, monkeypatch: Any, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(images)
    results = []
    for folder in (server.settings.data_dir, images / "alone"):
        code, output = run(capfd, *arguments, "--json", "--data-dir", str(folder))
        assert code == 0, output
        results.append(json.loads(output))
    different = {"id", "filepath", "generation_time", "created_at", "image", "mask_image"}
    with_server, alone = ({key: result[key] for key in result if key not in different} for result in results)
    assert with_server == alone
    first, second = (Image.open(result["filepath"]).convert("RGB") for result in results)
    assert first.tobytes() == second.tobytes()
    assert first.size == (alone["width"], alone["height"])
    if "--mask" in arguments:
        original = Image.open(images / "image.png").convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", original.size, "white"), original).convert("RGB")
        assert ImageChops.difference(first, flat).getbbox() == (0, 0, 64, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "no.png", "a fox"], "Image 'no.png' cannot be read (No such file or directory)."),
        (["edit", "image.png", "a fox", "--mask", "no.png"], "Mask 'no.png' cannot be read"),
        (["edit", "image.png", "a fox", "--outpaint", "1,x"], "Outpaint must be left,top,right,bottom in pixels"),
        (["upscale", "image.png", "--scale", "3"], "Scale must be 2 or 4 (got 3)."),
        (["generate", "a fox", "--preset", "warp"], "Preset must be one of quality, balanced, turbo (got 'warp')."),
    ],
)
def test_invalid_values_are_explained(
    images: Path, monkeypatch: Any, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(images)
    code, output = run(capfd, *arguments, "--data-dir", str(images / "data"))
    assert code == 2
    assert message in output


def test_lists_and_version(capfd: pytest.CaptureFixture[str]) -> None:
    for command, names in (("styles", STYLES), ("schedulers", SCHEDULERS)):
        _, output = run(capfd, command, "--json")
        assert [json.loads(line)["name"] for line in output.splitlines()] == list(names)
    project = tomllib.loads((cli.ROOT / "pyproject.toml").read_text())["project"]
    assert run(capfd, "--version") == (0, f"Magic Canvas {project['version']}\n")
