"""The whole recipe in miniature: 20 things of our own, a few steps, no network."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from canvas.training import autoencoder, classifier, decoder, denoiser, text
from canvas.training.checkpoints import Clock
from canvas.training.evaluate import Settings, evaluate, time_pipeline
from canvas.training.export import export_model, modes_line, write_card
from canvas.training.layers import prepare_layers
from canvas.training.modes import ModeFigures, modes_figures
from canvas.training.packages import ART_PACKAGES, NAMES_PACKAGE, ArtPackage, fetch
from canvas.training.parallel import Team
from canvas.training.presets import CPU
from canvas.training.sampling import Sampler
from canvas.training.sheet import contact_sheet
from canvas.training.sprites import Sprites, build_sprites
from canvas.training.tokens import prepare_tokenizer

MINI = replace(
    CPU,
    image_size=64,
    sprite_size=48,
    things_file=None,
    vae_channels=8,
    vae_batch=4,
    decoder_channels=12,
    decoder_batch=4,
    vocabulary_size=900,
    text_hidden=64,
    text_layers=1,
    text_batch=4,
    unet_channels=(32, 64),
    unet_batch=4,
    cache_size=32,
    fresh_per_step=1,
)
COLOURS = ("red", "green", "blue", "orange", "purple")
SHAPES = {
    "disc": '<circle cx="16" cy="16" r="12" fill="{}"/>',
    "box": '<rect x="4" y="6" width="24" height="20" fill="{}"/>',
    "kite": '<path d="M16 2 L28 16 L16 30 L4 16 Z" fill="{}"/>',
    "bar": '<rect x="2" y="12" width="28" height="8" fill="{}"/>',
}
NAMES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]


def write_tarball(folder: Path, package: ArtPackage, members: dict[str, bytes]) -> None:
    with tarfile.open(folder / f"{package.tarball_prefix}-1.0.0.tgz", "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def svg_icons() -> bytes:
    icons = {
        name.replace(" ", "-"): {"body": SHAPES[name.split()[1]].format(name.split()[0])}
        for name in NAMES
    }
    return json.dumps({"prefix": "mini", "width": 32, "height": 32, "icons": icons}).encode()


def webp_disc(colour: str) -> bytes:
    picture = Image.new("RGBA", (32, 32))
    ImageDraw.Draw(picture).ellipse((4, 4, 28, 28), fill=colour)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("resvg_py", reason="canvas/training/requirements.txt is not installed")
    folder = tmp_path_factory.mktemp("packages")
    entries = [
        {"label": name, "hexcode": f"{0x1F400 + row:X}", "tags": [], "group": 3, "subgroup": 34}
        for row, name in enumerate(NAMES)
    ]
    write_tarball(folder, NAMES_PACKAGE, {"en/data.json": json.dumps(entries).encode()})
    for package in ART_PACKAGES:
        if package.style == "3d":
            members = {
                f"assets/{0x1F400 + row:x}.webp": webp_disc(name.split()[0])
                for row, name in enumerate(NAMES)
            }
        else:
            members = {"icons.json": svg_icons()}
        write_tarball(folder, package, members)
    return folder


@pytest.fixture(scope="module")
def trained(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    sprites = build_sprites(MINI, packages, things_file=None)
    sprites.save(work / "sprites")
    (work / "near.json").write_text(json.dumps([[] for _ in sprites.things]))
    prepare_tokenizer(sprites, MINI, work)
    autoencoder.train_autoencoder(Team(), sprites, MINI, work, short_clock())
    prepare_layers(sprites, MINI, work, torch.device("cpu"))
    for train in (
        text.train_text,
        denoiser.train_denoiser,
        decoder.train_decoder,
        classifier.train_judge,
    ):
        train(Team(), sprites, MINI, work, short_clock())
    return work


def short_clock(seconds: float = 1.0, **options: float) -> Clock:
    return Clock(seconds / 60, torch.device("cpu"), **options)


def test_the_drawings_are_found_under_their_names(trained: Path) -> None:
    sprites = Sprites.load(trained / "sprites")
    assert [thing.name for thing in sprites.things] == NAMES
    assert len(sprites.pixels) == len(NAMES) * len(MINI.styles)
    red_disc = sprites.pictures[sprites.index[NAMES.index("red disc"), 0]]
    middle = red_disc.getpixel((red_disc.width // 2, red_disc.height // 2))
    assert middle == pytest.approx((255, 0, 0, 255), abs=4)


def test_the_model_loads_and_draws_as_every_other_pipeline(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red disc in the snow", num_inference_steps=2).images[0]
    assert picture.size == (MINI.picture_size, MINI.picture_size)
    stored = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
    assert len(stored) == 3


def test_the_figures_are_written_into_the_card(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path)
    sprites = Sprites.load(trained / "sprites")
    judge = classifier.load_judge(trained, len(sprites.things))
    settings = Settings(steps=2, guidance_scale=1.0, single=8, pairs=4)
    sampler = Sampler(tmp_path, torch.device("cpu"))
    figures = evaluate(sampler, judge, sprites, MINI.picture_size, settings)
    figures |= time_pipeline(tmp_path, settings, runs=1)
    assert 0 <= figures["thing_top1"] <= figures["thing_top5"] <= 1
    assert figures["variety_percent"] > 0
    (trained / "figures.json").write_text(json.dumps(figures))
    write_card(trained, tmp_path, sprites)
    card = (tmp_path / "README.md").read_text()
    assert "{{" not in card
    assert f"{100 * figures['place']:.1f} %" in card
    assert "@lobehub/fluent-emoji-3d` | 1.0.0" in card


def test_balanced_is_told_in_the_card_and_held_to_quality() -> None:
    quality = ModeFigures("quality", 4, 1.0, 98.4, 99.0, 0.1)
    balanced = replace(quality, mode="balanced", ssim=0.95, thing_top1=96.9)
    assert balanced.is_close_to(quality)
    assert not replace(balanced, ssim=0.89).is_close_to(quality)
    assert not replace(balanced, thing_top1=96.0).is_close_to(quality)
    line = modes_line(modes_figures(quality, balanced))
    assert "SSIM 0.950, thing right 96.9 % against 98.4 %" in line
    assert "not measured" in modes_line({})


def test_the_sheet_shows_every_prompt(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path)
    sampler = Sampler(tmp_path, torch.device("cpu"))
    prompts = ("a red disc", "a blue bar at night", "a green box, flat")
    contact_sheet(sampler, tmp_path / "sheet.png", 2, 1.0, columns=2, prompts=prompts)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * (MINI.picture_size + 6), 2 * (MINI.picture_size + 18))


@pytest.mark.parametrize(
    ("train", "name"),
    [
        (denoiser.train_denoiser, "denoiser.pt"),
        (decoder.train_decoder, "decoder.pt"),
        (text.train_text, "text.pt"),
    ],
)
def test_an_interrupted_training_goes_on_where_it_stopped(
    trained: Path, train: Callable[..., None], name: str
) -> None:
    (trained / name).unlink()
    sprites = Sprites.load(trained / "sprites")
    clock = short_clock(8.0, stop_after=1.5 / 60)
    train(Team(), sprites, MINI, trained, clock)
    first = torch.load(trained / name, weights_only=True)
    assert 0 < clock.share < 1
    clock = short_clock(8.0, stop_after=1.0 / 60)
    train(Team(), sprites, MINI, trained, clock)
    second = torch.load(trained / name, weights_only=True)
    assert second["step"] > first["step"]
    assert second["spent"] > first["spent"]
    steps = {float(state["step"]) for state in second["optimizer"]["state"].values()}
    assert steps == {float(second["step"])}


def test_a_missing_package_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"npm pack emojibase-data"):
        fetch(NAMES_PACKAGE, tmp_path)


def test_the_command_line_trains_in_two_processes(trained: Path) -> None:
    (trained / "judge.pt").unlink()
    line = ["judge", "--work", str(trained), "--minutes", "0.02", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "canvas.training", *line],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert classifier.load_judge(trained, len(NAMES))
