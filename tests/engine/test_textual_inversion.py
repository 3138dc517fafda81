from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from canvas.engine.device import Device
from canvas.engine.generate import GenerationInputs
from canvas.engine.pipeline_cache import PipelineCache
from canvas.engine.prompt_embeds import encode_prompt_cached
from canvas.engine.tasks import run_task
from canvas.engine.textual_inversion import (
    Embedding,
    applied_embeddings,
    list_embeddings,
    replace_names,
    requested_embeddings,
)
from canvas.engine.upscale import LoadedPipeline
from canvas.errors import InvalidInput, NotFound
from canvas.models.download import LocalModel
from canvas.request import GenerationRequest
from tests.conftest import make_spec
from tests.tiny_families import make_tiny

CPU = Device("cpu", "float32", "test")
TEXT = "a fox in the {}"


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Any:
    return diffusers.StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(make_tiny("sdxl", tmp_path_factory.mktemp("xl")))


def word_vector(pipeline: Any, word: str, suffix: str = "") -> torch.Tensor:
    """The embedding of a word that is one token, (1, width)."""
    encoder = getattr(pipeline, f"text_encoder{suffix}")
    [token] = getattr(pipeline, f"tokenizer{suffix}")(word, add_special_tokens=False).input_ids
    return encoder.get_input_embeddings().weight.data[[token]].clone()


def encode(pipeline: Any, prompt: str, *, weighting: bool = False) -> torch.Tensor:
    return encode_prompt_cached(pipeline, (prompt, ""), guided=False, weighting=weighting)["prompt_embeds"]


def save(path: Path, layout: str, vectors: torch.Tensor) -> Path:
    if layout == "emb_params":
        save_file({"emb_params": vectors}, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    content = {
        "a1111": {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "x", "step": 9},
        "diffusers": {"<snow>": vectors[0]},
        "parameter": {"string_to_param": {"*": torch.nn.Parameter(vectors)}},
    }[layout]
    torch.save(content, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


@pytest.mark.parametrize("weighting", [False, True])
@pytest.mark.parametrize("layout", ["emb_params", "a1111", "diffusers", "parameter"])
def test_an_embedding_acts_as_the_word_whose_vector_it_has(
    tiny: Any, tmp_path: Path, layout: str, weighting: bool
) -> None:
    plain = encode(tiny, TEXT.format("snow"), weighting=weighting)
    path = save(tmp_path / "winter", layout, word_vector(tiny, "snow"))
    before = encode(tiny, TEXT.format("winter"), weighting=weighting)
    with applied_embeddings(tiny, [Embedding("winter", path)]) as applied:
        for name in ("winter", "WINTER", "embedding:winter", "<embed:winter>", f"winter{path.suffix}"):
            found = encode(tiny, applied.rewrite(TEXT.format(name)), weighting=weighting)
            assert torch.allclose(found, plain, atol=1e-5)
        assert applied.notes == ()
    assert torch.equal(encode(tiny, TEXT.format("winter"), weighting=weighting), before)
    assert len(tiny.tokenizer) == tiny.text_encoder.get_input_embeddings().num_embeddings


def test_an_embedding_acts_on_the_upscaler_detail(tiny_folder: Path, tiny: Any, tmp_path: Path) -> None:
    spec = make_spec(str(tiny_folder))
    pipeline = PipelineCache(CPU).get(spec, LocalModel(tiny_folder, ""), "image_to_image")
    embedding = Embedding("winter", save(tmp_path / "winter", "emb_params", word_vector(tiny, "snow")))

    def upscale(word: str, embeddings: tuple[Embedding, ...]) -> bytes:
        fields = {"width": 64, "height": 64, "seed": 3, "num_inference_steps": 2, "model_key": spec.key}
        request = GenerationRequest(TEXT.format(word), task="upscale", upscaler="detail", image="i.png", **fields)
        request = request.with_defaults(spec)
        inputs = GenerationInputs({"image": Image.new("RGB", (32, 32), "red")}, embeddings=embeddings)
        loaded = LoadedPipeline(pipeline, spec, CPU)
        [result] = run_task(request, inputs, loaded, lambda step: None, threading.Event())
        assert result.request == request
        return result.image.tobytes()

    assert upscale("winter", (embedding,)) == upscale("snow", ()) != upscale("winter", ())


def test_several_vectors_are_several_tokens(tiny: Any, tmp_path: Path) -> None:
    vectors = torch.cat([word_vector(tiny, word) for word in ("red", "house")])
    path = save(tmp_path / "place", "emb_params", vectors)
    plain = encode(tiny, "a fox in red house")
    with applied_embeddings(tiny, [Embedding("place", path)]) as applied:
        assert torch.allclose(encode(tiny, applied.rewrite("a fox in place")), plain, atol=1e-5)


def test_sdxl_takes_a_vector_for_each_encoder(xl: Any, tmp_path: Path) -> None:
    plain = encode_prompt_cached(xl, (TEXT.format("snow"), ""), guided=False, weighting=False)
    path = tmp_path / "winter.safetensors"
    save_file({"clip_l": word_vector(xl, "snow"), "clip_g": word_vector(xl, "snow", "_2")}, path)
    with applied_embeddings(xl, [Embedding("winter", path)]) as applied:
        prompt = applied.rewrite(TEXT.format("winter"))
        found = encode_prompt_cached(xl, (prompt, ""), guided=False, weighting=False)
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        assert torch.allclose(found[name], plain[name], atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "base_model"),
    [((768,), "Stable Diffusion 1.x"), ((1024,), "Stable Diffusion 2.x"), ((768, 1280), "SDXL")],
)
def test_an_embedding_of_another_family_names_it(
    tiny: Any, tmp_path: Path, widths: tuple[int, ...], base_model: str
) -> None:
    path = tmp_path / "x.safetensors"
    names = ("clip_l", "clip_g") if len(widths) > 1 else ("emb_params",)
    save_file({name: torch.zeros(1, width) for name, width in zip(names, widths, strict=True)}, path)
    with (
        pytest.raises(InvalidInput, match=f"inversion x, made for {base_model}, does not fit this model"),
        applied_embeddings(tiny, [Embedding("x", path, explicit=True)]),
    ):
        pass
    with applied_embeddings(tiny, [Embedding("x", path)]) as applied:
        assert applied.rewrite("a x") == "a x"
    assert "does not fit this model" in applied.notes[0]


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/nowhere/touched"),))


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"x" * 40, pickle.dumps({"string_to_param": Code()})])
def test_damaged_files_and_code_are_rejected(tiny: Any, tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(content)
    with (
        pytest.raises(InvalidInput, match=rf"evil\{suffix} is damaged or not a textual inversion"),
        applied_embeddings(tiny, [Embedding("evil", path, explicit=True)]),
    ):
        pass


def test_flux_takes_none(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    flux = diffusers.DiffusionPipeline.from_pretrained(make_tiny("flux-dev", tmp_path_factory.mktemp("flux")))
    path = save(tmp_path / "x", "emb_params", torch.zeros(1, 8))
    with (
        pytest.raises(InvalidInput, match="takes no textual inversions"),
        applied_embeddings(flux, [Embedding("x", path, explicit=True)]),
    ):
        pass


def test_names_in_prompts_are_found(tmp_path: Path) -> None:
    for name in ("Easy Negative.pt", "deep/snow.safetensors", "fée.bin", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*texts: str) -> set[tuple[str, bool]]:
        return {(each.name, each.explicit) for each in requested_embeddings(texts, tmp_path)}

    assert names("a fox", "(easy negative:1.2), fog") == {("Easy Negative", False)}
    assert names("snowy snow-man", "") == set()
    assert names("snow, fe\u0301e", "") == {("snow", False), ("fée", False)}
    assert names("<embed: snow > (embedding:fée:1.1)", "") == {("snow", True), ("fée", True)}
    with pytest.raises(NotFound, match=r"Textual inversion rain not found.*it has: Easy Negative, fée, snow"):
        names("a embedding:rain")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of embeddings, one name twice, and other files."""
    for name in ("winter.safetensors", "more/winter.pt", "more/Bad-Hands.BIN", "notes.txt"):
        path = tmp_path / "embeddings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "embeddings" / "folder.pt").mkdir()
    return tmp_path / "embeddings"


def test_files_are_listed_by_name(folder: Path) -> None:
    found = {name: path.relative_to(folder).as_posix() for name, path in list_embeddings(folder).items()}
    assert found == {"winter": "more/winter.pt", "Bad-Hands": "more/Bad-Hands.BIN"}


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (("a fox in winter", ""), {"winter": False}),
        (("Winter.pt, fox", "bad-hands"), {"winter": False, "Bad-Hands": False}),
        (("winters, mid-winter, wintery", "x-bad-hands"), {}),
        (("winter <embed:WINTER>", ""), {"winter": True}),
        (("<embedding: winter >, winter", "embedding:bad-hands, winter"), {"winter": True, "Bad-Hands": True}),
        (("embedding:winter.safetensors", ""), {"winter": True}),
    ],
)
def test_texts_request_embeddings(folder: Path, texts: tuple[str, ...], names: dict[str, bool]) -> None:
    assert {found.name: found.explicit for found in requested_embeddings(texts, folder)} == names


def test_only_the_explicit_syntax_needs_a_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"inversion summer not found.*folder embeddings \(it has: Bad-Hands, winter\)"):
        requested_embeddings(("<embed:summer>",), folder)
    with pytest.raises(NotFound, match=r"it has: none"):
        requested_embeddings(("embedding:summer",), tmp_path / "none")
    assert requested_embeddings(("summer",), folder) == ()


def test_names_are_replaced_in_every_syntax() -> None:
    text = "winter, <embed:winter>, embedding:WINTER, winter.pt, winters, <embed:summer>"
    assert replace_names(text, {"winter": "t1 t2"}) == "t1 t2, t1 t2, t1 t2, t1 t2, winters, <embed:summer>"
