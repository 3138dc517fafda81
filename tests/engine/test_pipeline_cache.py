"""Loading, sharing and evicting real pipelines, and damaged files."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from canvas.catalog import ASSETS, MODELS, ModelSpec
from canvas.engine import system_info
from canvas.engine.device import Device
from canvas.engine.loader import load_pipeline
from canvas.engine.pipeline_cache import PipelineCache, default_budget
from canvas.errors import InvalidInput, ModelCorrupted, OutOfMemory
from canvas.models.download import LocalModel
from tests.conftest import make_spec
from tests.tiny_pipeline import write_announced_terabyte

CPU = Device("cpu", "float32", "test")
MEGABYTE = 2**20


def local(spec: ModelSpec, revision: str = "") -> LocalModel:
    return LocalModel(Path(spec.name), "", revision)


def load(folder: Path, cache: PipelineCache | None = None) -> Any:
    spec = make_spec(str(folder))
    return (cache or PipelineCache(CPU)).get(spec, local(spec))


@pytest.fixture
def damaged(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "damaged"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loads_in_the_dtype_of_the_device(tiny_spec: ModelSpec, dtype: str) -> None:
    cache = PipelineCache(Device("cpu", dtype, ""))
    pipeline = cache.get(tiny_spec, local(tiny_spec))
    assert pipeline.unet.dtype == getattr(torch, dtype)
    assert pipeline.vae.dtype == getattr(torch, dtype)
    assert pipeline.text_encoder.dtype == getattr(torch, dtype)
    assert cache.is_loaded(tiny_spec)


@pytest.mark.slow
def test_size_is_that_of_the_weights(tiny_spec: ModelSpec) -> None:
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        cache = PipelineCache(Device("cpu", dtype, ""))
        pipeline = cache.get(tiny_spec, local(tiny_spec))
        count = sum(
            parameter.numel()
            for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)
            for parameter in part.parameters()
        )
        sizes[dtype] = cache.loaded()[tiny_spec.name]
        assert sizes[dtype] == pytest.approx(count * (4 if dtype == "float32" else 2), rel=0.02)


@pytest.mark.slow
def test_models_of_one_source_share_one_pipeline() -> None:
    cache = PipelineCache(CPU)
    starter = MODELS["starter"]
    other = replace(starter, key="starter-again", num_inference_steps=3)
    assert cache.get(starter, local(starter)) is cache.get(other, local(other))
    assert list(cache.loaded()) == [str(ASSETS / "starter")]
    assert cache.is_loaded(other)
    assert cache.unload(other)
    assert not cache.is_loaded(starter)
    assert not cache.unload(starter)


@pytest.mark.parametrize(
    ("task", "name"),
    [("image_to_image", "StableDiffusionImg2ImgPipeline"), ("inpaint", "StableDiffusionInpaintPipeline")],
)
def test_tasks_share_the_weights(tiny_spec: ModelSpec, task: str, name: str) -> None:
    cache = PipelineCache(CPU)
    base = cache.get(tiny_spec, local(tiny_spec))
    before = cache.loaded()
    variant = cache.get(tiny_spec, local(tiny_spec), task)
    assert type(variant).__name__ == name
    assert variant.unet is base.unet
    assert variant.unet.dtype == torch.float32
    assert cache.get(tiny_spec, local(tiny_spec), task) is variant
    assert cache.loaded() == before


def test_unknown_task_is_rejected(tiny_spec: ModelSpec) -> None:
    with pytest.raises(InvalidInput, match=r"Task must be one of .*'upscale'"):
        PipelineCache(CPU).get(tiny_spec, local(tiny_spec), "upscale")


@pytest.mark.slow
def test_another_revision_replaces_the_first(tiny_spec: ModelSpec) -> None:
    cache = PipelineCache(CPU)
    first = cache.get(tiny_spec, local(tiny_spec, "a" * 40))
    assert cache.get(tiny_spec, local(tiny_spec, "a" * 40)) is first
    assert cache.get(tiny_spec, local(tiny_spec, "b" * 40)) is not first
    assert len(cache.loaded()) == 1


@pytest.mark.slow
def test_least_recently_used_model_is_evicted(tiny_folder: Path, tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(tiny_folder, tmp_path / name)) for name in "abc"]
    a, b, c = (make_spec(str(folder), folder.name) for folder in folders)
    measuring = PipelineCache(CPU)
    measuring.get(a, local(a))
    (size,) = measuring.loaded().values()
    cache = PipelineCache(CPU, memory_budget=int(2.5 * size))
    cache.get(a, local(a))
    cache.get(b, local(b))
    cache.get(a, local(a))
    cache.get(c, local(c))
    assert [cache.is_loaded(spec) for spec in (a, b, c)] == [True, False, True]
    assert list(cache.loaded()) == [a.name, c.name]


@pytest.mark.slow
def test_old_model_is_freed_before_the_new_one_loads(tiny_folder: Path, damaged: Path) -> None:
    cache = PipelineCache(CPU, memory_budget=1)
    unet = weakref.ref(load(tiny_folder, cache).unet)
    (damaged / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelCorrupted):
        load(damaged, cache)
    assert unet() is None


@pytest.fixture(scope="module")
def two_big_models(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, ModelSpec]:
    """Two pipelines with UNets of 150 MB in float32."""
    from diffusers import UNet2DConditionModel

    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("big") / "one"))
    UNet2DConditionModel(
        block_out_channels=(320, 640),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        sample_size=8,
    ).save_pretrained(folder / "unet")
    again = Path(shutil.copytree(folder, folder.with_name("two")))
    return make_spec(str(folder), "one"), make_spec(str(again), "two")


@pytest.mark.long
def test_memory_is_freed(two_big_models: tuple[ModelSpec, ModelSpec]) -> None:
    """Memory does not grow when two models alternate."""
    one, two = two_big_models
    cache = PipelineCache(Device("cpu", "bfloat16", ""), memory_budget=1)
    system_info.release_memory()
    before = system_info.resident_memory()
    sizes = []
    for spec in (one, two) * 6:
        cache.get(spec, local(spec))
        system_info.release_memory()
        sizes.append(system_info.resident_memory())
    (size,) = cache.loaded().values()
    assert size > 60 * MEGABYTE
    after_two, after_ten = max(sizes[1:3]), max(sizes[9:])
    assert after_ten <= 1.05 * after_two
    cache.clear()
    assert system_info.resident_memory() - before < 0.5 * size


def truncate(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def break_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def name_unknown_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["diffusers", "NoSuchModel"]
    (folder / "model_index.json").write_text(json.dumps(index))


def remove_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def change_shapes(folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text())
    config["block_out_channels"] = [32, 64]
    (folder / "unet" / "config.json").write_text(json.dumps(config))


def empty_weights(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"{}" * 50)


@pytest.mark.parametrize(
    "damage", [truncate, break_index, name_unknown_class, remove_weights, change_shapes, empty_weights]
)
def test_damaged_files_are_reported(damaged: Path, tiny_spec: ModelSpec, damage: Any) -> None:
    damage(damaged)
    cache = PipelineCache(CPU)
    with pytest.raises(ModelCorrupted) as raised:
        load(damaged, cache)
    assert len(str(raised.value)) < 600
    assert cache.loaded() == {}
    cache.get(tiny_spec, local(tiny_spec))
    assert cache.is_loaded(tiny_spec), "the cache stays usable"


class Bomb:
    """Runs code when it is unpickled, like a malicious weights file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self.path, "boom")


def test_bin_weights_load_without_running_code(tiny_folder: Path, tiny_bin_folder: Path, tmp_path: Path) -> None:
    safe, binary = load(tiny_folder), load(tiny_bin_folder)
    assert binary.safety_checker is None
    for name, tensor in safe.unet.state_dict().items():
        assert torch.equal(tensor, binary.unet.state_dict()[name])
    folder = Path(shutil.copytree(tiny_bin_folder, tmp_path / "evil"))
    bomb = pickle.dumps({"conv_in.weight": Bomb(tmp_path / "boom")})
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(ModelCorrupted):
        load(folder)
    assert not (tmp_path / "boom").exists()


def test_fp16_files_are_loaded_if_there_are_no_others(tiny_full_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_full_folder, tmp_path / "half"))
    for path in folder.glob("*/*"):
        if path.suffix in (".safetensors", ".bin") and ".fp16." not in path.name:
            path.unlink()
    pipeline = load(folder)
    assert pipeline.unet.dtype == torch.float32
    assert pipeline.safety_checker is None


def test_model_that_does_not_fit_is_rejected_before_loading(damaged: Path, tiny_spec: ModelSpec) -> None:
    """The header announces a terabyte; the kernel would kill the process."""
    write_announced_terabyte(damaged / "unet" / "diffusion_pytorch_model.safetensors")
    cache = PipelineCache(CPU)
    cache.get(tiny_spec, local(tiny_spec))
    with pytest.raises(OutOfMemory, match=r"needs 1099\.\d GB of memory"):
        load(damaged, cache)


def test_default_budget_is_a_fraction_of_the_memory() -> None:
    assert 0 < default_budget(CPU) < system_info.total_memory()
    assert PipelineCache(CPU).memory_budget == default_budget(CPU)


def test_default_budget_of_a_gpu_is_a_fraction_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 10 * 10**9))
    assert default_budget(Device("cuda", "float16", "a GPU")) == 8 * 10**9


def test_clear_unloads_all_models(tiny_folder: Path) -> None:
    cache = PipelineCache(CPU)
    unet = weakref.ref(load(tiny_folder, cache).unet)
    cache.clear()
    gc.collect()
    assert unet() is None
    assert cache.loaded() == {}


@pytest.mark.slow
def test_concurrent_loads_keep_their_weights() -> None:
    # from_pretrained patches torch in the whole process; see FROM_PRETRAINED_LOCK.
    spec = MODELS["starter"]
    with ThreadPoolExecutor(2) as pool:
        loaded = list(pool.map(lambda _: load_pipeline(spec, local(spec), CPU), range(6)))
    assert not any(parameter.is_meta for pipe in loaded for parameter in pipe.unet.parameters())
    assert not torch.nn.Linear(2, 2).weight.is_meta
