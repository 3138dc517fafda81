"""Converts a model at its first load and keeps the faster of torch and OpenVINO."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from canvas.catalog import ModelSpec
from canvas.engine import system_info
from canvas.engine.device import Device, read_measurements, save_measurements
from canvas.engine.openvino import conversion, int8, runtime
from canvas.engine.optimizations import malloc
from canvas.errors import InvalidInput
from canvas.models.download import LocalModel

logger = logging.getLogger(__name__)

# Below this gain a second copy of the weights on the disk is not worth it. Where Turbo and Balanced
# can use int8, which only OpenVINO computes, it is worth it unless the other images become slower.
MIN_SPEEDUP = 1.1
MIN_SPEEDUP_WITH_INT8 = 0.95
# Counted up whenever graphs of earlier versions can no longer be used.
FORMAT = 1
CHOICES_FILE = "engines.json"
CONVERTED_DIR = "converted"  # beside `snapshots` in the Hub cache
MIN_FREE_BYTES = 2_000_000_000  # that the graphs must leave on the disk
NOTE_ATTRIBUTE = "_engine_note"


def make_engine(device: Device, cache_dir: Path, choice: str | None) -> OpenVinoEngine | None:
    """The engine for the setting `engine`; None if only torch is used. Raises InvalidInput."""
    if choice == "torch" or device.name != "cpu":
        return None
    if not runtime.is_installed():
        if choice == "openvino":
            raise InvalidInput("CANVAS_ENGINE", choice, "torch, because the package openvino is not installed")
        return None
    return OpenVinoEngine(device, cache_dir, forced=choice == "openvino")


def engine_name(pipeline: Any) -> str:
    """The engine that computes the pipeline's denoising steps."""
    return str(getattr(getattr(pipeline, "unet", None), "engine", "torch"))


def use_preset(pipeline: Any, preset: str) -> None:
    """Select the graph for the images that follow: Turbo and Balanced use int8 if there is one."""
    unet: Any = getattr(pipeline, "unet", None)
    if hasattr(unet, "use_preset"):
        unet.use_preset(preset)


def engine_note(pipeline: Any) -> str:
    """Why torch is used instead of OpenVINO, if that needs an explanation."""
    unet = getattr(pipeline, "unet", None)
    return str(vars(unet).get(NOTE_ATTRIBUTE, "")) if unet is not None else ""


def add_note(pipeline: Any, note: str) -> None:
    """Add a note on the engine to each image of the pipeline's UNet."""
    if (unet := getattr(pipeline, "unet", None)) is not None:
        vars(unet)[NOTE_ATTRIBUTE] = note


class OpenVinoEngine:
    """Decides for each model whether its UNet and its VAE decoder run on OpenVINO.

    Both engines compute the first load's measurement: a few passes each. The result is kept in
    `cache_dir` for the processor, its number of cores, the dtype and the versions of both
    libraries. With `forced` OpenVINO is used wherever a model can be converted.
    """

    def __init__(self, device: Device, cache_dir: Path, *, forced: bool = False) -> None:
        self._device = device
        self._cache_dir = cache_dir
        self._forced = forced
        self._int8_process: int8.Int8Process | None = None

    @contextmanager
    def generating(self, pipeline: Any) -> Iterator[None]:
        """For the generation of images: pauses the quantization, or starts it afterwards.

        The first images of a large model provide the inputs for the statistics.
        """
        process = self._int8_process
        if process is not None and process.is_running:
            process.suspend()
            try:
                yield
            finally:
                process.resume()
            return
        unet: Any = getattr(pipeline, "unet", None)
        if engine_name(pipeline) != "openvino" or not int8.is_worthwhile(unet.folder):
            yield
            return
        unet.recorder = unet.recorder or int8.InputRecorder()
        yield
        self._start_int8(unet)

    def _start_int8(self, unet: Any) -> None:
        """Quantize the UNet in the background, once enough of its inputs are recorded."""
        folder = unet.folder
        try:
            if unet.recorder.save(folder / int8.INPUTS):
                unet.recorder = None
                logger.info("Quantizing %s in the background", folder.name)
                self._int8_process = int8.Int8Process(folder, self._device)
        except OSError as error:  # for example a read-only cache
            logger.warning("Cannot quantize %s: %s", folder.name, error)

    def close(self) -> None:
        """Stop the quantization; it starts again after an image of the next start."""
        if self._int8_process is not None:
            self._int8_process.stop()
            self._int8_process = None

    def find_unet(self, local: LocalModel, *, lora: str) -> Any:
        """The converted UNet if it is on the disk and was chosen, otherwise None."""
        source = self._source(local, "unet", lora=lora)
        return source.load() if source.exists() and self._is_chosen(source) else None

    def prefers_torch(self, local: LocalModel, *, lora: str) -> bool:
        """Whether torch was found to be faster for the UNet."""
        return self._is_chosen(self._source(local, "unet", lora=lora)) is False

    def adopt(self, pipeline: Any, spec: ModelSpec, local: LocalModel, *, lora: str = "") -> None:
        """Replace the UNet and the VAE decoder of a pipeline that has just been loaded by torch.

        What is not converted yet is converted and measured, unless torch was faster before.
        """
        if not conversion.is_supported(pipeline):
            self._explain(pipeline, "it supports Stable Diffusion and SDXL only")
            return
        unet = pipeline.unet
        if engine_name(pipeline) == "torch":
            side = spec.resolution // pipeline.vae_scale_factor
            inputs = conversion.example_inputs(unet.config, (side, side))
            source = self._source(local, "unet", lora=lora)
            converted = self._choose(source, unet, inputs, pipeline)
            if converted is None:
                return
            pipeline.register_modules(unet=converted)
            del unet
            system_info.release_memory()
        self.adopt_decoder(pipeline, spec, local)

    def adopt_decoder(self, pipeline: Any, spec: ModelSpec, local: LocalModel) -> None:
        """Replace the decoder of the pipeline's VAE, whose files `local` names."""
        import torch

        if engine_name(pipeline) == "torch":
            return
        side = spec.resolution // pipeline.vae_scale_factor
        latents = torch.randn(1, pipeline.vae.config.latent_channels, side, side)
        decoder = pipeline.vae.decoder
        converted = self._choose(self._source(local, "vae_decoder"), decoder, (latents,), pipeline)
        if converted is not None:
            pipeline.vae.decoder = converted

    def _choose(self, source: ConvertedSource, module: Any, inputs: tuple[Any, ...], pipeline: Any) -> Any:
        """The converted module if it is faster than the module, or `forced`."""
        if not self._forced and self._is_chosen(source) is False:
            return None
        try:
            if not source.exists():
                self._convert(source, module, pipeline)
            converted = source.load()
            if not self._forced and self._is_chosen(source) is None:
                self._measure(source, module, converted, inputs)
        except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            logger.warning("OpenVINO is not used for %s of %s: %s", source.part, source.name, reason)
            self._explain(pipeline, reason)
            return None
        if self._forced or self._is_chosen(source):
            return converted
        shutil.rmtree(source.folder, ignore_errors=True)
        return None

    def _convert(self, source: ConvertedSource, module: Any, pipeline: Any) -> None:
        from filelock import FileLock

        source.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{source.folder}.lock"):  # workers load the same model
            if not source.exists():
                source.check_resources(module)
                logger.info("Converting %s of %s for OpenVINO", source.part, source.name)
                source.convert(module, pipeline)

    def _measure(self, source: ConvertedSource, module: Any, converted: Any, inputs: tuple[Any, ...]) -> None:
        measured = {
            "torch": best_seconds(lambda: run_module(module, inputs)),
            "openvino": best_seconds(lambda: run_module(converted, inputs)),
            "int8": source.can_use_int8(),
        }
        logger.info("%s of %s: %s (seconds)", source.part, source.name, measured)
        path = self._cache_dir / CHOICES_FILE
        save_measurements(path, {**read_measurements(path), self._choice_key(source): measured})

    def _is_chosen(self, source: ConvertedSource) -> bool | None:
        """Whether OpenVINO was fast enough; None if it was not measured yet."""
        if self._forced:
            return True
        measured = read_measurements(self._cache_dir / CHOICES_FILE).get(self._choice_key(source))
        if not isinstance(measured, dict) or not all(
            isinstance(measured.get(name), float) for name in ("torch", "openvino")
        ):
            return None
        has_int8 = measured.get("int8") is True and int8.is_installed()
        speedup = MIN_SPEEDUP_WITH_INT8 if has_int8 else MIN_SPEEDUP
        return bool(measured["torch"] >= speedup * measured["openvino"])

    def _choice_key(self, source: ConvertedSource) -> str:
        import torch

        machine = f"{system_info.processor_name()} | {torch.get_num_threads()} cores | {self._device.dtype}"
        return f"{machine} | torch {torch.__version__} | {source.key}"

    def _explain(self, pipeline: Any, reason: str) -> None:
        if self._forced:
            add_note(pipeline, f"computed with torch instead of OpenVINO: {reason}")

    def _source(self, local: LocalModel, part: str, *, lora: str = "") -> ConvertedSource:
        return ConvertedSource(self._device, self._cache_dir, local, f"{part}_{lora}" if lora else part)


class ConvertedSource:
    """Where a converted part of a model is kept: beside the model, or in `cache_dir`."""

    def __init__(self, device: Device, cache_dir: Path, local: LocalModel, part: str) -> None:
        self._device = device
        self.name = local.repo_id
        self.part = part
        suffix = f"{part}-openvino-"
        if local.cache_folder is not None:
            parent, prefix = local.cache_folder / CONVERTED_DIR, f"{local.path.name}-"
            self._all_versions = f"{prefix}{suffix}*"
        else:
            path_hash, files_hash = _fingerprints(local.path)
            parent, prefix = cache_dir / "openvino", f"{local.path.stem}-{path_hash}-{files_hash}-"
            self._all_versions = f"{local.path.stem}-{path_hash}-*-{suffix}*"
        self.folder = parent / f"{prefix}{suffix}{version('openvino')}-{FORMAT}"
        self.key = f"{self.name} {self.folder.name}"

    def exists(self) -> bool:
        """Whether the graphs are there in full size."""
        try:
            sizes: dict[str, int] = json.loads((self.folder / conversion.SIZES).read_text(encoding="utf-8"))
            return all((self.folder / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError, AttributeError):
            return False

    def can_use_int8(self) -> bool:
        """Whether the part is a UNet that is large enough for int8, with or without nncf."""
        return self.part == "unet" and int8.is_large(self.folder)

    def load(self) -> Any:
        from canvas.engine.openvino.modules import OpenVinoDecoder, OpenVinoUNet

        config = runtime.compile_config(self._device)
        return (OpenVinoDecoder if self.part == "vae_decoder" else OpenVinoUNet)(self.folder, config)

    def convert(self, module: Any, pipeline: Any) -> None:
        if self.part == "vae_decoder":
            conversion.convert_decoder(pipeline.vae, self.folder)
        else:
            conversion.convert_unet(module, self.folder)
        for folder in self.folder.parent.glob(self._all_versions):
            if folder != self.folder and folder.is_dir():  # of other versions of the files or of OpenVINO
                shutil.rmtree(folder, ignore_errors=True)

    def check_resources(self, module: Any) -> None:
        """Raise MemoryError or OSError if the conversion would fill the memory or the disk."""
        needed = conversion.conversion_bytes(module)
        free = system_info.free_memory()
        if needed > free:
            text = f"the conversion needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
            raise MemoryError(text)
        if shutil.disk_usage(self.folder.parent).free < needed / 2 + MIN_FREE_BYTES:
            raise OSError("the disk is nearly full")


def _fingerprints(path: Path) -> tuple[str, str]:
    """A hash of a model's path, and one of its files' sizes and times."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    first, second = (hashlib.sha256(repr(each).encode()).hexdigest() for each in (str(path.resolve()), stats))
    return first[:8], second[:12]


def run_module(module: Any, inputs: tuple[Any, ...]) -> Any:
    """Call a UNet or a decoder of torch or OpenVINO with float32 inputs."""
    import torch

    parameter = next(module.parameters(), torch.empty(0))
    inputs = tuple(each.to(parameter.dtype) for each in inputs)
    options = conversion.added_options(inputs[3:])
    with torch.no_grad():
        return module(*inputs[:3], **options, return_dict=False)[0] if len(inputs) > 1 else module(*inputs)


def best_seconds(run: Callable[[], Any], rounds: int = 2) -> float:
    """The best of several runs after a warm-up."""
    seconds = []
    with malloc.retain_freed_memory():  # as in generate()
        for _ in range(rounds + 1):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
