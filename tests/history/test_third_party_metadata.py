"""Texts are written after the published formats; `sd_parsers` reads them as a cross-check."""

from __future__ import annotations

import gzip
import html
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager

from canvas.catalog import MODELS
from canvas.errors import StorageError
from canvas.history.metadata import embed
from canvas.history.third_party_metadata import ImportedSettings, find_model, read_metadata
from canvas.request import GenerationRequest

from .conftest import make_image

A1111 = (
    "a lighthouse, storm\nNegative prompt: people\nSteps: 25, Sampler: DPM++ 2M, "
    "Schedule type: Karras, CFG scale: 6.5, Seed: 1234, Size: 512x640, Model hash: 879db523c3, "
    "Model: dreamshaper_8, Denoising strength: 0.5, Hires upscale: 2, Version: v1.10.1"
)
LIGHTHOUSE = {
    "prompt": "a lighthouse, storm",
    "negative_prompt": "people",
    "num_inference_steps": 25,
    "scheduler": "DPM++ 2M Karras",
    "guidance_scale": 6.5,
    "seed": 1234,
    "width": 512,
    "height": 640,
    "model_key": "dreamshaper",
}
GRAPH: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 1234,
            "steps": 25,
            "cfg": 6.5,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15/dreamshaper_8.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a lighthouse, storm", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "people", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
}
WORKFLOW: dict[str, Any] = {
    "version": 0.4,
    "links": [
        [1, 4, 0, 3, 0, "MODEL"],
        [2, 5, 0, 3, 3, "LATENT"],
        [3, 4, 1, 6, 0, "CLIP"],
        [4, 6, 0, 3, 1, "CONDITIONING"],
        [5, 4, 1, 7, 0, "CLIP"],
        [6, 7, 0, 3, 2, "CONDITIONING"],
    ],
    "nodes": [
        {
            "id": 3,
            "type": "KSampler",
            "widgets_values": [1234, "randomize", 25, 6.5, "dpmpp_2m", "karras", 1],
            "inputs": [
                {"name": "model", "link": 1},
                {"name": "positive", "link": 4},
                {"name": "negative", "link": 6},
                {"name": "latent_image", "link": 2},
            ],
        },
        {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["dreamshaper_8.ckpt"]},
        {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 640, 1]},
        {
            "id": 6,
            "type": "CLIPTextEncode",
            "widgets_values": ["a lighthouse, storm"],
            "inputs": [{"name": "clip", "link": 3}],
        },
        {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["people"], "inputs": [{"name": "clip", "link": 5}]},
        {"id": 10, "type": "Note", "widgets_values": ["hello"]},
    ],
}
INVOKEAI = {
    "app_version": "5.4.2",
    "generation_mode": "txt2img",
    "positive_prompt": "a lighthouse, storm",
    "negative_prompt": "people",
    "width": 512,
    "height": 640,
    "seed": 1234,
    "rand_device": "cpu",
    "cfg_scale": 6.5,
    "steps": 25,
    "scheduler": "dpmpp_2m_k",
    "model": {"key": "x", "hash": "y", "name": "Dreamshaper 8", "base": "sd-1", "type": "main"},
}
SD_METADATA = {
    "model": "stable diffusion",
    "model_weights": "dreamshaper-8",
    "model_hash": "abc",
    "app_id": "invoke-ai/InvokeAI",
    "app_version": "2.2.4",
    "image": {
        "prompt": [{"prompt": "a lighthouse, storm [people]", "weight": 1}],
        "steps": 25,
        "cfg_scale": 6.5,
        "sampler": "k_euler_a",
        "seed": 1234,
        "width": 512,
        "height": 640,
        "type": "txt2img",
    },
}
NOVELAI = {
    "Title": "AI generated image",
    "Description": "a lighthouse, storm",
    "Software": "NovelAI",
    "Source": "DreamShaper 8 37C2B166",
    "Comment": json.dumps(
        {
            **{"prompt": "a lighthouse, storm", "steps": 25, "height": 640, "width": 512},
            **{"scale": 6.5, "seed": 1234, "noise_schedule": "karras", "sampler": "k_dpmpp_2m"},
            **{"uc": "people", "request_type": "PromptGenerateRequest", "n_samples": 1},
        }
    ),
}
FOOOCUS = {
    **{"adm_guidance": "(1.5, 0.8, 0.3)", "base_model": "dreamshaper_8", "base_model_hash": "x"},
    **{"clip_skip": 2, "full_prompt": ["a lighthouse, photo"], "guidance_scale": 6.5, "loras": []},
    **{"metadata_scheme": "fooocus", "negative_prompt": "people", "performance": "Speed"},
    **{"prompt": "a lighthouse, storm", "refiner_model": "None", "sampler": "dpmpp_2m"},
    **{"resolution": "(512, 640)", "scheduler": "karras", "seed": "1234", "sharpness": 2.0},
    **{"steps": 25, "styles": "[]", "vae": "Default (model)", "version": "Fooocus v2.5.5"},
}
DREAM = '"a lighthouse, storm [people]" -s 25 -S 1234 -W 512 -H 640 -C 6.5 -A k_euler_a'


def png(tmp_path: Path, **texts: str) -> Path:
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name.replace("__", "-"), text)
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def graph(**changes: dict[str, Any]) -> dict[str, Any]:
    """The graph with other inputs of some nodes, or with more nodes."""
    nodes = json.loads(json.dumps(GRAPH))
    for name, node in changes.items():
        number = name.removeprefix("node")
        if "class_type" in node:
            nodes[number] = node
        else:
            nodes[number]["inputs"].update(node)
    return dict(nodes)


def workflow_of(graph: dict[str, Any]) -> dict[str, Any]:
    """The links of a graph as a workflow lists them, which sd-parsers needs."""
    links = [
        [0, value[0], value[1], number, 0, "CLIP" if name == "clip" else name]
        for number, node in graph.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list)
    ]
    return {"nodes": [], "links": links}


@pytest.mark.parametrize(
    ("texts", "program"),
    [
        ({"parameters": A1111}, "A1111"),
        ({"prompt": json.dumps(GRAPH), "workflow": json.dumps(WORKFLOW)}, "ComfyUI"),
        ({"invokeai_metadata": json.dumps(INVOKEAI)}, "InvokeAI"),
        ({"sd__metadata": json.dumps(SD_METADATA)}, "InvokeAI"),
        ({"Dream": DREAM}, "InvokeAI"),
        (NOVELAI, "NovelAI"),
        ({"parameters": json.dumps(FOOOCUS)}, "Fooocus"),
    ],
)
def test_read_metadata_of_other_programs(tmp_path: Path, texts: dict[str, str], program: str) -> None:
    path = png(tmp_path, **texts)
    found = read_metadata(path)
    expected = dict(LIGHTHOUSE)
    if "sd__metadata" in texts or "Dream" in texts:
        expected["scheduler"] = "Euler a"
    if "Dream" in texts:
        del expected["model_key"]
    assert found.program == program
    assert found.values == expected
    GenerationRequest.from_dict(found.values)
    info = ParserManager().parse(path)
    assert info is not None
    assert [prompt.value for prompt in info.prompts] == ["a lighthouse, storm"]
    assert str(info.samplers[0].parameters["seed"]) == "1234"


def test_fooocus_settings_in_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    comment = b"UNICODE\0" + json.dumps({**FOOOCUS, "styles": "['SAI Anime']"}).encode("utf-16-be")
    exif.get_ifd(0x8769)[0x9286] = comment
    path = tmp_path / "image.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    found = read_metadata(path)
    assert (found.program, found.values) == ("Fooocus", LIGHTHOUSE)
    assert found.warnings == ("styles is not supported (got \"['SAI Anime']\").",)


def test_novelai_image_to_image_becomes_a_warning(tmp_path: Path) -> None:
    comment = json.dumps({**json.loads(NOVELAI["Comment"]), "strength": 0.7, "sampler": "ddim_v3"})
    found = read_metadata(png(tmp_path, **{**NOVELAI, "Comment": comment}))
    assert "scheduler" not in found.values
    assert found.warnings == (
        "The image was made from another image, which the file does not contain.",
        "The sampler ddim_v3 karras is not supported.",
    )


# What sd-parsers 0.6 does not read, or reads wrongly, and this module therefore reads itself.


def sd_parsers_prompts(path: Path) -> list[str]:
    info = ParserManager().parse(path)
    return [prompt.value for prompt in info.prompts] if info else []


@pytest.mark.parametrize("texts", [{"prompt": json.dumps(GRAPH)}, {"workflow": json.dumps(WORKFLOW)}])
def test_comfyui_graph_or_workflow_alone(tmp_path: Path, texts: dict[str, str]) -> None:
    path = png(tmp_path, **texts)
    assert sd_parsers_prompts(path) == []
    found = read_metadata(path)
    assert (found.program, found.values) == ("ComfyUI", LIGHTHOUSE)


def test_a1111_values_with_commas_and_quotes(tmp_path: Path) -> None:
    text = 'a fox\nSteps: 9, Sampler: Euler, Seed: 7, CFG scale: 2, Model: "a, b: c", Size: 64x64'
    path = png(tmp_path, parameters=text)
    info = ParserManager().parse(path)
    assert info is not None
    assert [model.name for model in info.models] == ['"a']
    assert "The model a, b: c is not in the catalog" in read_metadata(path).warnings[0]


def test_invokeai_model_name_and_missing_scheduler(tmp_path: Path) -> None:
    metadata = {name: value for name, value in INVOKEAI.items() if name != "scheduler"}
    path = png(tmp_path, invokeai_metadata=json.dumps({**metadata, "negative_prompt": None}))
    assert sd_parsers_prompts(path) == []
    found = read_metadata(path)
    assert (found.values["prompt"], found.values["model_key"]) == (LIGHTHOUSE["prompt"], "dreamshaper")
    assert found.warnings == ()


def test_texts_with_quadratic_patterns_are_read_in_time(tmp_path: Path) -> None:
    started = time.thread_time()  # whatever else the computer does
    spaces = " " * 500_000
    for texts in ({"Dream": f'"x"{spaces}'}, {**NOVELAI, "Source": f"x{spaces}-"}):
        assert read_metadata(png(tmp_path, **texts)).program == ""
    assert time.thread_time() - started < 5


def test_unsupported_a1111_settings_become_warnings(tmp_path: Path) -> None:
    assert read_metadata(png(tmp_path, parameters=A1111)).warnings == (
        "Denoising strength is not supported (got 0.5).",
        "Hires upscale is not supported (got 2).",
    )


def test_our_own_images_contain_their_request(tmp_path: Path) -> None:
    path = tmp_path / "own.webp"
    image = make_image(image_format="webp")
    path.write_bytes(embed(image))
    found = read_metadata(path)
    assert found.program == "Magic Canvas"
    assert found.values == image.request.to_dict()


def test_unknown_models_become_warnings(tmp_path: Path) -> None:
    path = tmp_path / "own.png"
    path.write_bytes(embed(make_image(model_key="mine")))
    found = read_metadata(path)
    assert "model_key" not in found.values
    assert "The model mine is not in the catalog" in found.warnings[-1]


def test_comfyui_graph_in_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{json.dumps(GRAPH)}"
    exif[0x010F] = f"workflow:{json.dumps(WORKFLOW)}"
    path = tmp_path / "image.webp"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    found = read_metadata(path)
    assert (found.program, found.values) == ("ComfyUI", LIGHTHOUSE)


def test_photos_have_no_settings(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = "EOS 5D", "Canon: Inc"
    path = tmp_path / "image.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    assert read_metadata(path) == ImportedSettings()


def test_comfyui_values_behind_links(tmp_path: Path) -> None:
    changed = graph(
        node3={"seed": ["20", 0], "positive": ["21", 0]},
        node20={"class_type": "PrimitiveInt", "inputs": {"value": 77}},
        node21={
            "class_type": "ControlNetApplyAdvanced",
            "inputs": {"positive": ["6", 0], "negative": ["7", 0], "control_net": ["23", 0]},
        },
        node6={"text": ["22", 0]},
        node22={"class_type": "PrimitiveString", "inputs": {"value": "an owl"}},
        node23={"class_type": "ControlNetLoader", "inputs": {"control_net_name": "canny"}},
    )
    path = png(tmp_path, prompt=json.dumps(changed), workflow=json.dumps(workflow_of(changed)))
    assert sd_parsers_prompts(path) == ["people"]  # the negative one
    found = read_metadata(path)
    assert (found.values["seed"], found.values["prompt"]) == (77, "an owl")
    assert found.values["negative_prompt"] == "people"
    assert found.warnings == (
        "The node ControlNetApplyAdvanced is not supported.",
        "The node ControlNetLoader is not supported.",
    )


def test_comfyui_second_pass_and_lora_become_warnings(tmp_path: Path) -> None:
    second = {**GRAPH["3"], "inputs": {**GRAPH["3"]["inputs"]}}
    second["inputs"] |= {"latent_image": ["3", 0], "seed": 5, "denoise": 0.4, "steps": 9}
    changed = graph(
        node2=second,
        node3={"model": ["11", 0], "sampler_name": "heun"},
        node11={"class_type": "LoraLoader", "inputs": {"lora_name": "x", "model": ["4", 0], "clip": ["4", 1]}},
    )
    found = read_metadata(png(tmp_path, prompt=json.dumps(changed)))
    assert (found.values["seed"], found.values["num_inference_steps"]) == (1234, 25)
    assert "scheduler" not in found.values
    assert found.warnings == (
        "The image has 2 passes; only the first one is imported.",
        "The sampler heun karras is not supported.",
        "The node LoraLoader is not supported.",
    )


def test_comfyui_image_to_image(tmp_path: Path) -> None:
    changed = graph(
        node3={"denoise": 0.4, "latent_image": ["30", 0]},
        node30={"class_type": "VAEEncode", "inputs": {"pixels": ["31", 0], "vae": ["4", 2]}},
        node31={"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
    )
    found = read_metadata(png(tmp_path, prompt=json.dumps(changed)))
    assert "width" not in found.values
    assert found.warnings[0].startswith("The image was made from another image with strength 0.4")
    assert len(found.warnings) == 3


def test_comfyui_custom_sampler(tmp_path: Path) -> None:
    nodes = {
        "1": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["2", 0],
                "guider": ["3", 0],
                "sampler": ["4", 0],
                "sigmas": ["5", 0],
                "latent_image": ["6", 0],
            },
        },
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 9}},
        "3": {"class_type": "BasicGuider", "inputs": {"conditioning": ["7", 0]}},
        "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "5": {"class_type": "BasicScheduler", "inputs": {"scheduler": "simple", "steps": 4, "denoise": 1}},
        "6": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 768}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
    }
    path = png(tmp_path, prompt=json.dumps(nodes), workflow=json.dumps(workflow_of(nodes)))
    assert sd_parsers_prompts(path) == []
    found = read_metadata(path)
    assert found.values == {
        "prompt": "a cat",
        "seed": 9,
        "num_inference_steps": 4,
        "width": 1024,
        "height": 768,
        "scheduler": "Euler",
    }
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"width": 513}, "Width must be a multiple of 8"),
        ({"steps": 0}, "Steps must be"),
        ({"cfg_scale": "high"}, "Guidance must be"),
        ({"scheduler": "heun"}, "The sampler heun is not supported"),
        ({"loras": [{"weight": 1}]}, 'loras is not supported (got [{"weight": 1}]).'),
        ({"generation_mode": "img2img"}, "another image"),
        ({"model": {"name": "Juggernaut"}}, "Juggernaut"),
        ({"seed": 2**60}, "Seed must be"),
        ({"generation_mode": "img2img", "strength": 0.4}, "another image"),
    ],
)
def test_unsupported_invokeai_settings_become_warnings(tmp_path: Path, changes: dict[str, Any], warning: str) -> None:
    found = read_metadata(png(tmp_path, invokeai_metadata=json.dumps({**INVOKEAI, **changes})))
    assert found.values["prompt"] == "a lighthouse, storm"
    assert len(found.warnings) == 1
    assert warning in found.warnings[0]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dreamshaper_8", "dreamshaper"),
        ("SD\\DreamShaper 8.safetensors", "dreamshaper"),
        ("stable-diffusion-v1-5", "small"),
        ("prompthero/openjourney", "openjourney"),
        ("tiny", "tiny"),
        ("unknown", None),
        ("", None),
        ("//", None),
    ],
)
def test_find_model(name: str, key: str | None) -> None:
    assert find_model(name, MODELS) == key


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["inputs", "class_type", "image", "prompt", "3"]), inner)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunk=st.sampled_from(["prompt", "workflow", "invokeai_metadata", "sd__metadata"]),
    values=st.dictionaries(st.sampled_from(["1", "nodes", "links", "image", "model"]), JUNK),
)
def test_any_json_can_be_read(tmp_path: Path, chunk: str, values: dict[str, Any]) -> None:
    read_metadata(png(tmp_path, **{chunk: json.dumps(values)}))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    number=st.sampled_from(sorted(GRAPH)),
    name=st.sampled_from(["seed", "text", "positive", "model", "latent_image", "sampler_name"]),
    value=JUNK | st.lists(st.sampled_from(sorted(GRAPH)) | st.integers(), max_size=2),
)
def test_any_graph_can_be_read(tmp_path: Path, number: str, name: str, value: Any) -> None:
    changed = graph(**{f"node{number}": {name: value}})
    found = read_metadata(png(tmp_path, prompt=json.dumps(changed)))
    assert "prompt" not in found.values or GenerationRequest.from_dict(found.values)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 50_000, '"', '"x" -s -S -W', "NaN"])
def test_malformed_texts_are_ignored(tmp_path: Path, text: str) -> None:
    for chunk in ("prompt", "workflow", "invokeai_metadata", "sd__metadata", "Dream"):
        assert read_metadata(png(tmp_path, **{chunk: text})).values in ({}, {"prompt": "x"})


def test_other_files_raise(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(StorageError, match="cannot be read"):
        read_metadata(tmp_path / "x.png")


SWARMUI = {
    "sui_image_params": {
        **{"prompt": "a lighthouse, storm", "negativeprompt": "people", "model": "dreamshaper_8", "seed": 1234},
        **{"steps": 25, "cfgscale": 6.5, "aspectratio": "Custom", "width": 512, "height": 640},
        **{"sampler": "dpmpp_2m", "scheduler": "karras", "swarm_version": "0.9.6.2"},
    },
    "sui_extra_data": {"date": "2026-01-01", "generation_time": "1.2 seconds"},
}
DRAW_THINGS = {
    **{"c": "a lighthouse, storm", "uc": "people", "seed": 1234, "steps": 25, "scale": 6.5, "size": "512x640"},
    **{"sampler": "DPM++ 2M Karras", "model": "dreamshaper_8", "strength": 1, "loras": [], "controls": []},
}
EASY_DIFFUSION = {
    **{"prompt": "a lighthouse, storm", "negative_prompt": "people", "seed": "1234", "num_inference_steps": "25"},
    **{"guidance_scale": "6.5", "width": "512", "height": "640", "sampler_name": "euler_a"},
    **{"use_stable_diffusion_model": "dreamshaper_8", "use_lora_model": "None"},
}
EASY_DIFFUSION_TITLES = {
    **{"Prompt": "a lighthouse, storm", "Negative Prompt": "people", "Seed": "1234", "Steps": "25", "Width": "512"},
    **{"Guidance Scale": "6.5", "Height": "640", "Sampler": "euler_a", "Stable Diffusion model": "dreamshaper_8"},
}
FOOOCUS_A1111 = (
    "a lighthouse, storm\nNegative prompt: people\nSteps: 25, Sampler: DPM++ 2M, Seed: 1234, Size: 512x640, "
    "CFG scale: 6.5, Model: dreamshaper_8, Model hash: 879db523c3, Scheduler: karras, VAE: Default (model), "
    'Raw prompt: "a lighthouse, storm", Styles: "[\'Fooocus V2\']", Performance: Speed, Version: Fooocus v2.5.5'
)
DRAW_THINGS_XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description>
<exif:UserComment> <rdf:Alt> <rdf:li xml:lang="x-default">{}</rdf:li> </rdf:Alt> </exif:UserComment>
</rdf:Description></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize(
    ("texts", "program"),
    [
        ({"parameters": json.dumps(SWARMUI)}, "SwarmUI"),
        ({"parameters": json.dumps(DRAW_THINGS)}, "Draw Things"),
        ({"parameters": json.dumps(EASY_DIFFUSION)}, "Easy Diffusion"),
        (EASY_DIFFUSION, "Easy Diffusion"),
        (EASY_DIFFUSION_TITLES, "Easy Diffusion"),
        ({"parameters": FOOOCUS_A1111, "fooocus_scheme": "a1111"}, "Fooocus"),
        ({"parameters": json.dumps(NOVELAI)}, "NovelAI"),
    ],
)
def test_formats_that_sd_parsers_does_not_read(tmp_path: Path, texts: dict[str, str], program: str) -> None:
    found = read_metadata(png(tmp_path, **texts))
    expected = LIGHTHOUSE | ({"scheduler": "Euler a"} if program == "Easy Diffusion" else {})
    assert (found.program, found.values, found.warnings) == (program, expected, ())


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_draw_things_comment_in_xmp(tmp_path: Path, suffix: str) -> None:
    xmp = DRAW_THINGS_XMP.format(html.escape(json.dumps(DRAW_THINGS)))
    path = tmp_path / f"image.{suffix}"
    chunks = PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", xmp)
    Image.new("RGB", (8, 8)).save(path, **({"pnginfo": chunks} if suffix == "png" else {"xmp": xmp.encode()}))
    found = read_metadata(path)
    assert (found.program, found.values) == ("Draw Things", LIGHTHOUSE)


def test_fooocus_comment_in_the_main_exif_directory(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x9286], exif[0x0131], exif[0x927C] = json.dumps(FOOOCUS), "Fooocus v2.5.5", "fooocus"
    path = tmp_path / "image.webp"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    found = read_metadata(path)
    assert (found.program, found.values) == ("Fooocus", LIGHTHOUSE)


@pytest.mark.parametrize(
    ("texts", "prompt"),
    [
        ({"parameters": A1111.replace("storm", "(storm:1.3) [calm]")}, "a lighthouse, (storm:1.3) [calm]"),
        ({"prompt": json.dumps(GRAPH).replace("storm", "(storm:1.3)")}, "a lighthouse, (storm:1.3)"),
        ({"parameters": json.dumps(SWARMUI).replace("storm", "(storm:1.3)")}, "a lighthouse, (storm:1.3)"),
        (
            {"invokeai_metadata": json.dumps(INVOKEAI).replace("storm", "(big storm)1.3 (night) sky-- red+")},
            r"a lighthouse, (big storm:1.3) \(night\) (sky:0.81) (red:1.1)",
        ),
        ({"parameters": json.dumps(EASY_DIFFUSION).replace("storm", "(storm)++")}, "a lighthouse, (storm:1.21)"),
        (
            {**NOVELAI, "Description": "a {{lighthouse}}, [storm] 1.3::rain:: (x)"},
            r"a ((lighthouse:1.05):1.05), (storm:0.9524) (rain:1.3) \(x\)",
        ),
    ],
)
def test_weights_of_other_programs_switch_on_ours(tmp_path: Path, texts: dict[str, str], prompt: str) -> None:
    found = read_metadata(png(tmp_path, **texts))
    assert (found.values["prompt"], found.values["prompt_weighting"]) == (prompt, True)
    assert "Prompt weights are switched on, as the prompt contains some." in found.warnings


@pytest.mark.parametrize("texts", [{"invokeai_metadata": json.dumps(INVOKEAI)}, NOVELAI])
def test_brackets_that_are_words_elsewhere_stay(tmp_path: Path, texts: dict[str, str]) -> None:
    found = read_metadata(
        png(tmp_path, **{name: text.replace("storm", "(storm:1.3) sci-fi") for name, text in texts.items()})
    )
    assert found.values["prompt"] == "a lighthouse, (storm:1.3) sci-fi"
    assert "prompt_weighting" not in found.values


def test_unknown_json_is_no_prompt(tmp_path: Path) -> None:
    found = read_metadata(png(tmp_path, parameters='{"tool": "x", "settings": [1, 2]}'))
    assert found.values == {}
    assert found.warnings == ("The metadata is JSON in an unknown format, which cannot be read.",)


def test_comfyui_nested_subgraphs_in_a_workflow(tmp_path: Path) -> None:
    """The samplers in a subgraph, its texts in another one, a promoted widget and a text node outside."""
    texts = {
        "id": "texts",
        "inputs": [{"name": "clip"}, {"name": "text"}],
        "nodes": [
            {
                "id": 6,
                "type": "CLIPTextEncode",
                "widgets_values": ["stale"],
                "inputs": [{"name": "clip", "link": 1}, {"name": "text", "link": 2, "widget": {"name": "text"}}],
            },
            {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["people"], "inputs": [{"name": "clip", "link": 3}]},
        ],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 6, "target_slot": 0},
            {"id": 2, "origin_id": -10, "origin_slot": 1, "target_id": 6, "target_slot": 1},
            {"id": 3, "origin_id": -10, "origin_slot": 0, "target_id": 7, "target_slot": 0},
            {"id": 4, "origin_id": 6, "origin_slot": 0, "target_id": -20, "target_slot": 0},
            {"id": 5, "origin_id": 7, "origin_slot": 0, "target_id": -20, "target_slot": 1},
        ],
    }
    sampling = {
        "id": "sampling",
        "nodes": [
            {"id": 8, "type": "texts", "inputs": [{"name": "clip", "link": 1}, {"name": "text", "link": 7}]},
            {
                "id": 3,
                "type": "KSampler",
                "widgets_values": [0, "fixed", 25, 6.5, "dpmpp_2m", "karras", 1],
                "inputs": [
                    {"name": "model", "link": 2},
                    {"name": "positive", "link": 3},
                    {"name": "negative", "link": 4},
                    {"name": "latent_image", "link": 5},
                    {"name": "seed", "link": 6, "widget": {"name": "seed"}},
                ],
            },
        ],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 1, "target_id": 8, "target_slot": 0},
            {"id": 2, "origin_id": -10, "origin_slot": 0, "target_id": 3, "target_slot": 0},
            {"id": 3, "origin_id": 8, "origin_slot": 0, "target_id": 3, "target_slot": 1},
            {"id": 4, "origin_id": 8, "origin_slot": 1, "target_id": 3, "target_slot": 2},
            {"id": 5, "origin_id": -10, "origin_slot": 2, "target_id": 3, "target_slot": 3},
            {"id": 6, "origin_id": -10, "origin_slot": 3, "target_id": 3, "target_slot": 4},
            {"id": 7, "origin_id": -10, "origin_slot": 4, "target_id": 8, "target_slot": 1},
        ],
    }
    workflow = {
        "definitions": {"subgraphs": [sampling, texts]},
        "links": [
            [1, 4, 0, 9, 0, "MODEL"],
            [2, 4, 1, 9, 1, "CLIP"],
            [3, 5, 0, 9, 2, "LATENT"],
            [4, 2, 0, 9, 4, "STRING"],
        ],
        "nodes": [
            {
                "id": 9,
                "type": "sampling",
                "widgets_values": [1234],
                "inputs": [
                    {"name": "model", "link": 1},
                    {"name": "clip", "link": 2},
                    {"name": "latent", "link": 3},
                    {"name": "seed", "link": None, "widget": {"name": "seed"}},
                    {"name": "text", "link": 4},
                ],
            },
            {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["dreamshaper_8.ckpt"]},
            {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 640, 1]},
            {"id": 2, "type": "PrimitiveString", "widgets_values": ["a lighthouse, storm"]},
        ],
    }
    found = read_metadata(png(tmp_path, workflow=json.dumps(workflow)))
    assert (found.program, found.values, found.warnings) == ("ComfyUI", LIGHTHOUSE, ())


def test_comfyui_loader_with_both_prompts(tmp_path: Path) -> None:
    inputs = GRAPH["3"]["inputs"]
    nodes = {
        "1": {
            "class_type": "Efficient Loader",
            "inputs": {"ckpt_name": "dreamshaper_8", "positive": "a lighthouse, storm", "negative": "people"},
        },
        "2": {
            "class_type": "KSampler (Efficient)",
            "inputs": {**inputs, "model": ["1", 0], "positive": ["1", 1], "negative": ["1", 2]},
        },
        "5": GRAPH["5"],
    }
    assert read_metadata(png(tmp_path, prompt=json.dumps(nodes))).values == LIGHTHOUSE


@pytest.mark.parametrize("name", ["positive", "negative", "conditioning"])
def test_comfyui_nodes_with_one_input_pass_its_prompt_on(tmp_path: Path, name: str) -> None:
    """Whatever the input is called: only of a node with both is one the positive and one the negative prompt."""
    sampler = {**GRAPH["3"]["inputs"], "positive": ["20", 0], "negative": ["21", 0]}
    nodes = {
        **GRAPH,
        "3": {**GRAPH["3"], "inputs": sampler},
        "20": {"class_type": "Custom", "inputs": {name: GRAPH["3"]["inputs"]["positive"], "weight": 1.0}},
        "21": {"class_type": "Custom", "inputs": {name: GRAPH["3"]["inputs"]["negative"], "weight": 1.0}},
    }
    assert read_metadata(png(tmp_path, prompt=json.dumps(nodes))).values == LIGHTHOUSE


@pytest.mark.parametrize("name", [b"stealth_pnginfo", b"stealth_pngcomp"])
@pytest.mark.parametrize(
    ("text", "program"), [(json.dumps(NOVELAI), "NovelAI"), (A1111.replace("Hires upscale: 2, ", ""), "A1111")]
)
def test_text_in_the_alpha_channel(tmp_path: Path, name: bytes, text: str, program: str) -> None:
    content = gzip.compress(text.encode()) if name == b"stealth_pngcomp" else text.encode()
    bits = np.unpackbits(np.frombuffer(name + (len(content) * 8).to_bytes(4, "big") + content, np.uint8))
    pixels = np.full((100, 120, 4), 254, np.uint8)
    alpha = pixels[..., 3].T.reshape(-1).copy()
    alpha[: len(bits)] += bits
    pixels[..., 3] = alpha.reshape(120, 100).T
    Image.fromarray(pixels).save(tmp_path / "image.png")
    found = read_metadata(tmp_path / "image.png")
    assert found.program == program
    assert {**LIGHTHOUSE, **found.values} == found.values


def test_transparent_pngs_without_text_have_no_settings(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).convert("RGBA").save(tmp_path / "image.png")
    assert read_metadata(tmp_path / "image.png") == ImportedSettings()
