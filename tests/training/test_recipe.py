"""The whole recipe at a small scale: 20 concepts, a few steps, no network."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from PIL import Image, ImageDraw
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from canvas.training.art_packages import ART_PACKAGES, NAMES_PACKAGE, STYLES, ArtPackage, fetch
from canvas.training.assets import SpriteSet, build_sprites, darken_if_invisible
from canvas.training.backgrounds import COLOURS as COLOURS_OF_BACKGROUNDS
from canvas.training.captions import in_style
from canvas.training.classifier import SceneClassifier
from canvas.training.config import CPU
from canvas.training.contact_sheet import write_contact_sheet
from canvas.training.decoder import DifficultDrawings, GeneratedScenes, train_decoder
from canvas.training.denoiser import (
    NUM_BACKGROUND_CODES,
    background_codes,
    prompt_tensors,
    sample_noise,
    train_denoiser,
)
from canvas.training.evaluate import EvalCounts, Sampler, classify, covered_psnr, covered_ssim, evaluate, time_pipeline
from canvas.training.export import export_model, write_card
from canvas.training.latents import LatentBasis, to_patches
from canvas.training.recolour import dominant_hue, name_colour, recolour
from canvas.training.scenes import BOXES, LAYOUTS, SHIFTS_DOWN, SHIFTS_RIGHT, SceneSampler, render_backgrounds
from canvas.training.stages import Options, stage_latents, stage_text
from canvas.training.text_encoder import WORD_TOKENS, DrawingCodes, PromptEmbeddings
from canvas.training.time_budget import TimeBudget
from canvas.training.tokenizer import SPECIAL_TOKENS, TokenTable
from canvas.vocabulary import Vocabulary

MINI = replace(
    CPU,
    sprite_size=64,
    backgrounds_per_place=1,
    latent_channels=12,
    code_size=64,
    vae_channels=48,
    decoder_blocks=(1, 0, 0, 0, 0),
    generated_scenes=8,
    decoder_batch_size=3,
    unet_channels=(32, 32, 32),
    unet_batch_size=2,
    cache_size=64,
    new_scenes_per_step=1,
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
        {"label": name, "hexcode": f"{0x1F400 + row:X}", "group": 3, "subgroup": 34} for row, name in enumerate(NAMES)
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
    """A work folder after all trainings."""
    work = tmp_path_factory.mktemp("work")
    concepts_file = work / "concepts.txt"
    concepts_file.write_text("\n".join(NAMES))
    build_sprites(MINI, packages, concepts_file).save(work / "sprites")
    options = Options((), MINI, "cpu", work, packages, work / "model", None, None)
    stage_latents(options)
    stage_text(options)
    sprites = SpriteSet.load(work / "sprites")
    for train in (train_denoiser, train_decoder):
        train(sprites, MINI, work, short_budget())
    return work


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    export_model(trained, folder)
    return folder


@pytest.fixture
def scenes(trained: Path) -> SceneSampler:
    return SceneSampler(SpriteSet.load(trained / "sprites"), render_backgrounds(MINI, trained), seed=1)


def short_budget(seconds: float = 1.0, **options: float) -> TimeBudget:
    return TimeBudget(seconds / 60, torch.device("cpu"), **options)


def test_sprites_are_rendered_for_their_concepts(trained: Path) -> None:
    sprites = SpriteSet.load(trained / "sprites")
    assert [concept.name for concept in sprites.concepts] == NAMES
    assert len(sprites.pixels) == len(NAMES) * len(MINI.styles)
    red_disc = sprites.images[sprites.index[NAMES.index("red disc"), 0]]
    centre = red_disc.getpixel((red_disc.width // 2, red_disc.height // 2))
    assert centre == pytest.approx((255, 0, 0, 255), abs=4)


def test_encoder_computes_the_principal_components(trained: Path, scenes: SceneSampler) -> None:
    pixels = scenes.images([scenes.sample() for _ in range(4)])
    vae = AutoencoderTiny.from_pretrained(trained / "vae")
    with torch.no_grad():
        latents = vae.encode(pixels).latents
    expected = LatentBasis.load(trained).encode(pixels)
    assert (latents - expected).square().sum() < 1e-3 * expected.square().sum()


def test_all_components_hold_the_image(scenes: SceneSampler) -> None:
    pixels = scenes.images([scenes.sample() for _ in range(8)])
    patches = to_patches(pixels)
    basis = LatentBasis.fit(patches, channels=768)
    values = basis.encode(pixels).permute(0, 2, 3, 1).reshape(-1, 768) / basis.gain
    assert (values @ basis.components.T + basis.mean - patches).abs().max() < 0.02


def test_residuals_are_what_linear_decoding_loses(trained: Path, scenes: SceneSampler) -> None:
    pixels = scenes.images([scenes.sample() for _ in range(3)])
    basis = LatentBasis.load(trained)
    values = basis.encode(pixels).permute(0, 2, 3, 1).flatten(0, 2) / basis.gain
    lost = (values @ basis.components.T + basis.mean - to_patches(pixels)).square().sum(1)
    torch.testing.assert_close(basis.residuals(pixels), lost.reshape(3, 16, 16), rtol=1e-3, atol=1e-3)


def test_noise_tells_the_light_and_the_background() -> None:
    lights, codes = torch.randn(3), torch.randn(3, NUM_BACKGROUND_CODES)
    noise = sample_noise(lights, codes, 48)
    told = noise.mean((2, 3))[:, : 1 + NUM_BACKGROUND_CODES] * 16
    torch.testing.assert_close(told, torch.cat([lights[:, None], codes], 1), rtol=1e-3, atol=1e-3)
    assert noise.std() == pytest.approx(1, abs=0.05)


def test_codes_tell_the_backgrounds_of_a_place_apart(trained: Path, tmp_path: Path) -> None:
    backgrounds = render_backgrounds(replace(MINI, backgrounds_per_place=2), tmp_path)
    codes = background_codes(backgrounds, LatentBasis.load(trained), tmp_path)
    first = codes.reshape(-1, 2, NUM_BACKGROUND_CODES)[..., 0].abs()
    torch.testing.assert_close(first, torch.full_like(first, 0.6745), rtol=0, atol=1e-3)  # the quartiles
    assert (background_codes(backgrounds, LatentBasis.load(trained), tmp_path) == codes).all()


def test_decoder_is_trained_on_difficult_scenes_most(trained: Path, scenes: SceneSampler) -> None:
    generated = GeneratedScenes(
        images=torch.tensor([0, 100, 200], dtype=torch.uint8)[:, None, None, None].expand(3, 256, 256, 3),
        covered=torch.ones(3, 256, 256, dtype=torch.bool),
        latents=torch.zeros(3, MINI.latent_channels, 16, 16, dtype=torch.half),
        boxes=torch.tensor([[3, 4, 10]] * 3),
        difficulties=torch.tensor([1.0, 0.0, 9.0]),
    )
    basis = LatentBasis.load(trained)
    pixels = generated.sample(basis, DifficultDrawings(scenes.sprites, basis), 100, Random(1))[1]
    has_drawings = pixels.flatten(1).std(1) > 0
    assert has_drawings.tolist() == [index % 8 in {2, 4, 6} for index in range(100)]
    brightness = (pixels[~has_drawings].mean((1, 2, 3)) * 127.5 + 127.5).round().int().tolist()
    assert set(brightness) == {0, 200}
    assert brightness.count(200) > 0.8 * len(brightness)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_encoder_gives_the_embeddings_of_the_training(trained: Path, scenes: SceneSampler, layout: str) -> None:
    """The denoiser is trained on embeddings that are computed without the encoder."""
    chosen = [scenes.sample(layout, recoloured=0.5) for _ in range(8)]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained / "tokenizer")
    prompts = [scene.prompt(scenes.sprites) for scene in chosen]
    ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        encoded = CLIPTextModel.from_pretrained(trained / "text_encoder")(ids).last_hidden_state
    codes = DrawingCodes.load(trained)
    expected = PromptEmbeddings(codes, codes.cells())(*prompt_tensors(chosen, scenes.sprites))
    assert (encoded[:, WORD_TOKENS:] - expected[:, WORD_TOKENS:]).abs().max() < 0.05
    assert (encoded[:, :WORD_TOKENS] - expected[:, :WORD_TOKENS]).abs().max() < 0.3  # several things change the norm


def test_codes_of_few_drawings_hold_them_exactly(trained: Path) -> None:
    assert DrawingCodes.load(trained).explained > 0.99


def test_boxes_lie_in_the_image_and_do_not_overlap_in_a_layout() -> None:
    for layout, boxes in LAYOUTS.items():
        cells = [
            (row, column)
            for box in (BOXES[index] for index in boxes)
            for row in range(box.top, box.top + box.cells)
            for column in range(box.left, box.left + box.cells)
        ]
        assert len(set(cells)) == len(cells)
        for right, down in product(SHIFTS_RIGHT.get(layout, (0,)), SHIFTS_DOWN):
            assert all(0 < row + down < 15 and 0 < column + right < 15 for row, column in cells)


def test_tokenizer_reads_phrases_before_words(trained: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained / "tokenizer")
    tokens = tokenizer.tokenize("A flat red disc, a blue bar and an elephant on a red background")
    flat, blue = ([f"{name}·{number}" for number in range(1, 5)] for name in ("flat:red_disc", "blue_bar"))
    assert tokens == [*flat, ",", *blue, "and", "<unk>", "on_red_background"]


def test_every_drawing_has_its_tokens(trained: Path) -> None:
    sprites = SpriteSet.load(trained / "sprites")
    table = TokenTable.build(sprites)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained / "tokenizer")
    for (concept, style), drawing in sprites.index.items():
        prompt = f"two {in_style(sprites.concepts[concept].name, STYLES[style])}, {'flat ' * 2}in the snow"
        sources = [table.sources[index] for index in tokenizer(prompt).input_ids]
        quadrants = [source.quadrant for source in sources if source.drawing == drawing]
        assert quadrants == [0, 1, 2, 3], prompt


def test_thin_gray_sprites_are_darkened() -> None:
    thin, thick = Image.new("RGBA", (64, 64)), Image.new("RGBA", (64, 64), (110, 120, 130, 255))
    draw = ImageDraw.Draw(thin)
    draw.line((0, 0, 63, 63), fill=(110, 120, 130, 255), width=3)
    assert darken_if_invisible(thin)[32, 32].tolist() == [55, 60, 65, 255]
    assert np.array_equal(darken_if_invisible(thick), np.asarray(thick))
    draw.line((0, 0, 63, 63), fill=(250, 120, 30, 255), width=3)
    assert np.array_equal(darken_if_invisible(thin), np.asarray(thin))


def test_two_things_of_one_name_are_refused(trained: Path) -> None:
    sprites = SpriteSet.load(trained / "sprites")
    sprites.concepts[1] = replace(sprites.concepts[1], name=sprites.concepts[0].name)
    with pytest.raises(ValueError, match="'cartoon red disc' is the name of two things"):
        TokenTable.build(sprites)


@pytest.mark.parametrize("layout", ["one", "pair"])
def test_held_out_combinations_are_never_sampled(scenes: SceneSampler, layout: str) -> None:
    held_out = SceneSampler(scenes.sprites, render_backgrounds_of(scenes), seed=2, held_out=True)
    tested = {(scene.concepts, scene.style, scene.place) for scene in (held_out.sample(layout) for _ in range(100))}
    seen = {(scene.concepts, scene.style, scene.place) for scene in (scenes.sample(layout) for _ in range(3000))}
    assert not seen & tested


def render_backgrounds_of(scenes: SceneSampler) -> object:
    return scenes._backgrounds


def test_exported_model_works_in_a_diffusers_pipeline(exported: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(exported, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red disc in the snow", num_inference_steps=2, guidance_scale=1.0).images[0]
    assert image.size == (256, 256)
    assert len(list(exported.rglob("*.safetensors"))) == 3
    assert len(pipeline.tokenizer.added_tokens_decoder) == len(SPECIAL_TOKENS), "others are slow in diffusers"


def test_exported_text_encoder_loses_little_in_8_bits(trained: Path, exported: Path, scenes: SceneSampler) -> None:
    prompts = [scenes.sample("one").prompt(scenes.sprites) for _ in range(4)]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained / "tokenizer")
    ids = tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        exact = CLIPTextModel.from_pretrained(trained / "text_encoder")(ids).last_hidden_state[:, WORD_TOKENS:]
        stored = CLIPTextModel.from_pretrained(exported / "text_encoder", dtype=torch.float32)(ids)
    error = stored.last_hidden_state[:, WORD_TOKENS:] - exact
    assert error.square().sum() < 0.003 * exact.square().sum()


def test_card_contains_the_metrics(trained: Path, exported: Path) -> None:
    sprites = SpriteSet.load(trained / "sprites")
    backgrounds = render_backgrounds(MINI, trained)
    classifier = SceneClassifier(sprites, backgrounds)
    held_out = SceneSampler(sprites, backgrounds, seed=3, held_out=True)
    counts = EvalCounts(singles=8, fidelity=4, pairs=4, trios=4, colours=4)
    codes = background_codes(backgrounds, LatentBasis.load(trained), trained)
    sampler = Sampler(exported, torch.device("cpu"))
    metrics = evaluate(sampler, classifier, held_out, codes, small_vocabulary(), counts)
    metrics |= time_pipeline(exported, "a red disc", runs=1)
    assert 0 <= metrics["one_top1"] <= metrics["one_top5"] <= 1
    assert metrics["diversity_percent"] > 0
    (trained / "metrics.json").write_text(json.dumps(metrics))
    write_card(trained, exported, sprites)
    card = (exported / "README.md").read_text()
    assert "{{" not in card
    assert f"{100 * metrics['one_place']:.1f} %" in card
    assert f"{metrics['autoencoder_psnr']:.1f} dB" in card
    assert "@lobehub/fluent-emoji-3d` | 1.0.0" in card


def small_vocabulary() -> Vocabulary:
    words = {"things": {}, "places": {}, "styles": ["3d"], "colours": [], "colour_phrase": "on a {} background"}
    return Vocabulary({**words, "counts": [], "sizes": [], "positions": [], "max_things": 3}, {})


def test_similarity_counts_only_covered_pixels() -> None:
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    changed = image.clone()
    changed[:, :, :, 16:] = 0
    left = torch.zeros(1, 32, 32, dtype=torch.bool)
    left[:, :, :8] = True
    noisy = image + 0.2
    assert covered_ssim(changed, image, left) == pytest.approx([1])
    assert covered_psnr(noisy, image, left) == pytest.approx([20], abs=0.01)
    assert covered_psnr(changed, image, ~left)[0] < 15


def test_contact_sheet_shows_every_prompt(exported: Path, tmp_path: Path) -> None:
    prompts = ("a red disc", "a blue bar at night", "a flat green box")
    path = tmp_path / "sheet.png"
    write_contact_sheet(Sampler(exported, torch.device("cpu")), path, prompts, side=64, columns=2)
    with Image.open(path) as sheet:
        assert sheet.size == (2 * (64 + 6), 2 * (64 + 18))


@pytest.mark.parametrize(("train", "name"), [(train_denoiser, "denoiser.pt"), (train_decoder, "decoder.pt")])
def test_interrupted_training_resumes_at_its_step(trained: Path, train: Callable[..., None], name: str) -> None:
    (trained / name).unlink()
    sprites = SpriteSet.load(trained / "sprites")
    budget = short_budget(3600.0, stop_after=1.5 / 60)
    train(sprites, MINI, trained, budget)
    first = torch.load(trained / name, weights_only=True)
    assert 0 < budget.progress < 1
    train(sprites, MINI, trained, short_budget(3600.0, stop_after=1.0 / 60))
    second = torch.load(trained / name, weights_only=True)
    assert second["step"] > first["step"]
    assert second["elapsed"] > first["elapsed"]
    steps = {float(state["step"]) for state in second["optimizer"]["state"].values()}
    assert steps == {float(second["step"])}


def test_missing_package_error_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"npm pack emojibase-data"):
        fetch(NAMES_PACKAGE, tmp_path)


def test_command_line_renders_the_sprites_of_its_packages(packages: Path, tmp_path: Path) -> None:
    line = ["sprites", "--work", str(tmp_path), "--packages", str(packages)]
    done = subprocess.run([sys.executable, "-m", "canvas.training", *line], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "not in emojibase" in done.stderr


def test_a_hue_is_turned_and_gray_stays_gray() -> None:
    image = Image.new("RGBA", (2, 1), (200, 40, 40, 255))
    image.putpixel((1, 0), (90, 90, 90, 128))
    turned = recolour(image, "hue 120")
    assert turned.getpixel((0, 0)) == (40, 200, 40, 255)
    assert turned.getpixel((1, 0)) == (90, 90, 90, 128)
    assert recolour(image, "") is image


@pytest.mark.parametrize(("name", "rgb"), COLOURS_OF_BACKGROUNDS.items())
def test_colours_have_their_names(name: str, rgb: tuple[int, int, int]) -> None:
    assert name_colour(np.array([rgb] * 4)) == ("" if name in ("white", "gray", "black") else name)


def test_the_hue_of_a_drawing_is_that_of_most_of_it() -> None:
    pixels = np.array([(0, 0, 220)] * 60 + [(250, 200, 40)] * 20 + [(128, 128, 128)] * 20)
    assert dominant_hue(pixels) == pytest.approx(240, abs=0.1)
    assert dominant_hue(np.array([(120, 124, 128)])) is None


@pytest.mark.parametrize("layout", ["one", "pair", "trio"])
def test_classifier_names_shifted_scenes(scenes: SceneSampler, layout: str) -> None:
    classifier = SceneClassifier(scenes.sprites, render_backgrounds_of(scenes))
    chosen = [replace(scenes.sample(layout), shift=shift) for shift in ((0, 0), (-1, -2), (1, 1))]
    accuracies = classify(classifier, scenes.images(chosen), chosen)
    assert accuracies == {"top1": 1, "top5": 1, "all": 1, "style": accuracies["style"], "place": 1}


def test_a_shift_moves_the_drawing_by_cells(scenes: SceneSampler) -> None:
    scene = replace(scenes.sample("one"), shift=(0, 0), recolour="")
    _, covered = scenes.compose(scene)
    _, shifted = scenes.compose(replace(scene, shift=(-2, 1)))
    assert (shifted == np.roll(covered, (16, -32), (0, 1))).all()
