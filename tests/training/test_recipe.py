"""The whole recipe at a small scale: 20 concepts, a few steps, no network."""

import io
import json
import shutil
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

from canvas.training.__main__ import parse_options
from canvas.training.art_packages import ART_PACKAGES, NAMES_PACKAGE, ArtPackage, fetch
from canvas.training.assets import SpriteSet, build_sprites
from canvas.training.autoencoder import train_autoencoder
from canvas.training.config import CPU
from canvas.training.contact_sheet import write_contact_sheet
from canvas.training.decoder_finetune import finetune_decoder
from canvas.training.denoiser import train_denoiser
from canvas.training.distributed import ProcessGroup
from canvas.training.eval_classifier import load_classifier, train_classifier
from canvas.training.evaluate import EvalConfig, evaluate, time_pipeline
from canvas.training.export import export_model, preset_comparison, write_card
from canvas.training.preset_regression import PresetMetrics, preset_metrics
from canvas.training.sampling import Sampler
from canvas.training.stages import rename_old_files
from canvas.training.text_encoder import train_text_encoder
from canvas.training.time_budget import TimeBudget
from canvas.training.token_targets import compute_token_targets
from canvas.training.tokenizer import prepare_tokenizer

MINI = replace(
    CPU,
    image_size=64,
    sprite_size=48,
    concepts_file=None,
    vae_channels=8,
    vae_batch_size=4,
    decoder_channels=12,
    decoder_batch_size=4,
    vocabulary_size=900,
    text_hidden_size=64,
    text_layers=1,
    text_batch_size=4,
    unet_channels=(32, 64),
    unet_batch_size=4,
    cache_size=32,
    new_samples_per_step=1,
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
    icons = {name.replace(" ", "-"): {"body": SHAPES[name.split()[1]].format(name.split()[0])} for name in NAMES}
    return json.dumps({"prefix": "mini", "width": 32, "height": 32, "icons": icons}).encode()


def webp_disc(colour: str) -> bytes:
    image = Image.new("RGBA", (32, 32))
    ImageDraw.Draw(image).ellipse((4, 4, 28, 28), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
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
            members = {f"assets/{0x1F400 + row:x}.webp": webp_disc(name.split()[0]) for row, name in enumerate(NAMES)}
        else:
            members = {"icons.json": svg_icons()}
        write_tarball(folder, package, members)
    return folder


@pytest.fixture(scope="module")
def trained(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    sprites = build_sprites(MINI, packages, concepts_file=None)
    sprites.save(work / "sprites")
    (work / "synonyms.json").write_text(json.dumps([[] for _ in sprites.concepts]))
    prepare_tokenizer(sprites, MINI, work)
    train_autoencoder(ProcessGroup(), sprites, MINI, work, short_budget())
    compute_token_targets(sprites, MINI, work, torch.device("cpu"))
    for train in (train_text_encoder, train_denoiser, finetune_decoder, train_classifier):
        train(ProcessGroup(), sprites, MINI, work, short_budget())
    return work


def short_budget(seconds: float = 1.0, **options: float) -> TimeBudget:
    return TimeBudget(seconds / 60, torch.device("cpu"), **options)


def test_sprites_are_rendered_for_their_concepts(trained: Path) -> None:
    sprites = SpriteSet.load(trained / "sprites")
    assert [concept.name for concept in sprites.concepts] == NAMES
    assert len(sprites.pixels) == len(NAMES) * len(MINI.styles)
    red_disc = sprites.images[sprites.index[NAMES.index("red disc"), 0]]
    centre = red_disc.getpixel((red_disc.width // 2, red_disc.height // 2))
    assert centre == pytest.approx((255, 0, 0, 255), abs=4)


def test_exported_model_works_in_a_diffusers_pipeline(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red disc in the snow", num_inference_steps=2).images[0]
    assert image.size == (MINI.output_size, MINI.output_size)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_card_contains_the_metrics(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path)
    sprites = SpriteSet.load(trained / "sprites")
    classifier = load_classifier(trained, len(sprites.concepts))
    config = EvalConfig(num_inference_steps=2, guidance_scale=1.0, num_singles=8, num_pairs=4)
    sampler = Sampler(tmp_path, torch.device("cpu"))
    metrics = evaluate(sampler, classifier, sprites, MINI.output_size, config)
    metrics |= time_pipeline(tmp_path, config, runs=1)
    assert 0 <= metrics["concept_top1"] <= metrics["concept_top5"] <= 1
    assert metrics["diversity_percent"] > 0
    (trained / "metrics.json").write_text(json.dumps(metrics))
    write_card(trained, tmp_path, sprites)
    card = (tmp_path / "README.md").read_text()
    assert "{{" not in card
    assert f"{100 * metrics['place']:.1f} %" in card
    assert "@lobehub/fluent-emoji-3d` | 1.0.0" in card


def test_balanced_must_be_close_to_quality_in_ssim_and_accuracy() -> None:
    quality = PresetMetrics("quality", 4, 1.0, 98.4, 99.0, 0.1)
    balanced = replace(quality, preset="balanced", ssim=0.95, concept_top1=96.9)
    assert balanced.is_close_to(quality)
    assert not replace(balanced, ssim=0.89).is_close_to(quality)
    assert not replace(balanced, concept_top1=96.0).is_close_to(quality)
    sentence = preset_comparison(preset_metrics(quality, balanced))
    assert "SSIM 0.950, top-1 accuracy 96.9 % and 98.4 %" in sentence
    assert "not measured" in preset_comparison({})


def test_contact_sheet_shows_every_prompt(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path)
    sampler = Sampler(tmp_path, torch.device("cpu"))
    prompts = ("a red disc", "a blue bar at night", "a green box, flat")
    path = tmp_path / "sheet.png"
    write_contact_sheet(sampler, path, 2, 1.0, columns=2, prompts=prompts)
    with Image.open(path) as sheet:
        assert sheet.size == (2 * (MINI.output_size + 6), 2 * (MINI.output_size + 18))


@pytest.mark.parametrize(
    ("train", "name"),
    [(train_denoiser, "denoiser.pt"), (finetune_decoder, "decoder.pt"), (train_text_encoder, "text.pt")],
)
def test_interrupted_training_resumes_at_its_step(trained: Path, train: Callable[..., None], name: str) -> None:
    (trained / name).unlink()
    sprites = SpriteSet.load(trained / "sprites")
    budget = short_budget(8.0, stop_after=1.5 / 60)
    train(ProcessGroup(), sprites, MINI, trained, budget)
    first = torch.load(trained / name, weights_only=True)
    assert 0 < budget.progress < 1
    with_old_names(trained / name)
    train(ProcessGroup(), sprites, MINI, trained, short_budget(8.0, stop_after=1.0 / 60))
    second = torch.load(trained / name, weights_only=True)
    assert second["step"] > first["step"]
    assert second["elapsed"] > first["elapsed"]
    steps = {float(state["step"]) for state in second["optimizer"]["state"].values()}
    assert steps == {float(second["step"])}


def with_old_names(path: Path) -> None:
    """Rewrite the checkpoint as earlier versions named its entries."""
    old = {"elapsed": "spent", "probe_heads": "reader", "discriminator": "critic", "discriminator_optimizer": "critics"}
    state = torch.load(path, weights_only=True)
    state = {old.get(name, name): part for name, part in state.items()}
    if "reader" in state:
        state["reader"] = {name.replace("tokens.", "layer."): weight for name, weight in state["reader"].items()}
    torch.save(state, path)


def test_work_folders_of_earlier_versions_are_read(trained: Path, tmp_path: Path) -> None:
    state = torch.load(trained / "classifier.pt", weights_only=True)
    state["side"] = state.pop("input_size")
    state["model"] = {name.replace("concepts.", "things."): weight for name, weight in state["model"].items()}
    torch.save(state, tmp_path / "judge.pt")
    shutil.copytree(trained / "sprites", tmp_path / "sprites")
    concepts_file = tmp_path / "sprites" / "concepts.json"
    meta = json.loads(concepts_file.read_text())
    meta["things"] = meta.pop("concepts")
    concepts_file.with_name("things.json").write_text(json.dumps(meta))
    concepts_file.unlink()

    rename_old_files(tmp_path)
    assert load_classifier(tmp_path, len(NAMES)).input_size == MINI.classifier_size
    concepts = SpriteSet.load(tmp_path / "sprites").concepts
    assert concepts == SpriteSet.load(trained / "sprites").concepts


def test_missing_package_error_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"npm pack emojibase-data"):
        fetch(NAMES_PACKAGE, tmp_path)


def test_former_stage_and_option_names_are_aliases() -> None:
    line = "banks text judge --beside sheet modes --until 9e9 --plain-steps --steps 8 --guidance 2"
    with pytest.raises(SystemExit):  # preset-regression is not run beside others
        parse_options(line.split())
    options = parse_options(line.replace(" modes", "").split())
    assert options.stages == ("precompute", "text", "classifier")
    assert options.parallel_stages == ("contact-sheet",)
    assert options.deadline is not None
    assert not options.config.cuda_graphs
    assert (options.num_inference_steps, options.guidance_scale) == (8, 2.0)
    assert parse_options(["modes"]).stages == ("preset-regression",)


def test_command_line_trains_in_two_processes(trained: Path) -> None:
    (trained / "classifier.pt").unlink()
    line = ["classifier", "--work", str(trained), "--minutes", "0.02", "--workers", "2"]
    done = subprocess.run([sys.executable, "-m", "canvas.training", *line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_classifier(trained, len(NAMES))
