"""The parts of a picture, timed in turns, and the memory of one picture in a fresh process."""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.engine import heap
from canvas.engine.acceleration import CACHED, FULL, WANTED, shortcuts
from canvas.engine.decoding import decode
from canvas.engine.device import Device
from canvas.engine.downloads import find_local
from canvas.engine.generation import run
from canvas.engine.loading import quieten, tune
from canvas.engine.pipelines import PipelineCache
from canvas.engine.synthetic import build_synthetic, build_tiny_decoder, synthetic_spec
from canvas.engine.words import forget_words
from canvas.errors import ModelGone
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from canvas.catalog import ModelSpec

PROMPT = "a fox in the snow"
PLAIN_GUIDANCE = 7.5
CEILING_SIDE = 2048


@dataclass
class Subject:
    """A model as plain diffusers loads it and as this program does; None is not loaded."""

    spec: ModelSpec
    device: Device
    plain: Any = None
    ours: Any = None
    tiny_decoder: Any = None

    def make_plain(self, side: int, steps: int, *, slicing: bool = False) -> Image:
        """What a tutorial shows, with the attention slicing of the original program or without."""
        import torch

        if slicing:
            self.plain.enable_attention_slicing()
        try:
            found: Image = self.plain(
                PROMPT,
                width=side,
                height=side,
                num_inference_steps=steps,
                guidance_scale=PLAIN_GUIDANCE,
                generator=torch.Generator().manual_seed(1),
            ).images[0]
        finally:
            if slicing:
                self.plain.disable_attention_slicing()
        return found

    def make_ours(self, request: GenerationRequest) -> Image:
        """The picture of a resolved request, the way of this program."""
        (made,) = run(
            self.ours,
            request,
            spec=self.spec,
            device=self.device,
            on_step=lambda _: None,
            cancelled=threading.Event(),
        )
        assert made.image is not None  # noqa: S101 - run gives pictures
        return made.image


def load_subject(
    spec: ModelSpec | None, device: Device, *, plain: bool = True, ours: bool = True
) -> Subject:
    """The model of the catalogue, or with None the synthetic one; raises ModelGone."""
    import torch
    from diffusers import DiffusionPipeline

    quieten()
    if spec is None:
        subject = Subject(synthetic_spec(), device)
        if ours:
            subject.ours = build_synthetic(device.torch_dtype).to(device.name)
            tune(subject.ours, device)
            subject.tiny_decoder = build_tiny_decoder(device.torch_dtype).to(device.name)
        if plain:
            subject.plain = build_synthetic(torch.float32).to(device.name)
        return subject
    local = find_local(spec)
    if local is None:
        raise ModelGone(f"The model {spec.key} is not on disk: download it, then measure it.")
    subject = Subject(spec, device)
    if ours:
        subject.ours = PipelineCache(device).get(spec, local)
    if plain:
        subject.plain = DiffusionPipeline.from_pretrained(str(local.path), dtype=torch.float32)
        subject.plain.set_progress_bar_config(disable=True)
        subject.plain.to(device.name)
    return subject


def own_share(subject: Subject, side: int, steps: int | None, turns: int) -> float:
    """The share of a Quality picture that passes outside text encoder, UNet and decoder.

    The median of several pictures after one that warms up, each with its words read anew.
    `steps` None takes the model's own number.
    """
    request = GenerationRequest(
        PROMPT, seed=1, width=side, height=side, num_inference_steps=steps
    ).resolve(subject.spec)
    shares = []
    with _clocked(subject.ours) as spent:
        for _ in range(turns + 1):
            forget_words(subject.ours)
            spent.clear()
            whole = timed(lambda: subject.make_ours(request))
            shares.append(1 - sum(spent) / whole)
    return statistics.median(shares[1:])


@contextmanager
def _clocked(pipeline: Any) -> Iterator[list[float]]:
    """The seconds of each call of the pipeline's models, from the outermost call on."""
    spent: list[float] = []

    def clocked(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            found = []
            spent.append(timed(lambda: found.append(work(*arguments, **options))))
            return found[0]

        return call

    models = [(pipeline.text_encoder, "forward"), (pipeline.unet, "forward")]
    models.append((pipeline.vae, "decode"))
    for model, name in models:
        setattr(model, name, clocked(getattr(model, name)))
    try:
        yield spent
    finally:
        for model, name in models:
            delattr(model, name)


class Parts:
    """What pictures of a subject are added up from, by name."""

    def __init__(self, subject: Subject, side: int) -> None:
        self._subject = subject
        self._side = side

    def measure(self, turns: int) -> dict[str, float]:
        """Seconds of each part, the median of several turns after one that warms up."""
        seconds: dict[str, list[float]] = {}
        for turn in range(turns + 1):
            for name, taken in self._turn().items():
                if turn:
                    seconds.setdefault(name, []).append(taken)
        return {name: statistics.median(taken) for name, taken in seconds.items()}

    def one_plain_pass(self) -> float:
        """Seconds of a guided pass of plain diffusers, warmed up."""
        self._passes(self._subject.plain)
        return self._passes(self._subject.plain)[FULL]

    def _turn(self) -> dict[str, float]:
        plain, ours = self._subject.plain, self._subject.ours
        found = {"plain text": self._text(plain), "text": self._text(ours)}
        found["plain pass"] = self._passes(plain)[FULL]
        plain.enable_attention_slicing()
        found["sliced pass"] = self._passes(plain)[FULL]
        plain.disable_attention_slicing()
        found["plain decode"] = self._decode(plain)
        found["decode"] = self._decode(ours)
        with heap.kept():  # as when a picture is made
            if self._subject.tiny_decoder is not None:
                usual, ours.vae = ours.vae, self._subject.tiny_decoder
                found["tiny decode"] = self._decode(ours)
                ours.vae = usual
            found |= self._passes(ours, (FULL, WANTED, CACHED))
        return found

    def _text(self, pipeline: Any) -> float:
        return timed(lambda: pipeline.encode_prompt(PROMPT, pipeline.device, 1, False))

    def _passes(self, pipeline: Any, kinds: tuple[str, ...] = (FULL,)) -> dict[str, float]:
        import torch

        unet = pipeline.unet
        side = self._side // pipeline.vae_scale_factor
        options = {"dtype": unet.dtype, "device": unet.device}
        sample = torch.randn(2, unet.config.in_channels, side, side, **options)
        words = torch.randn(2, 77, unet.config.cross_attention_dim, **options)
        with shortcuts(pipeline, list(kinds)):
            return {
                kind: timed(lambda: unet(sample, 500, words, return_dict=False)) for kind in kinds
            }

    def _decode(self, pipeline: Any) -> float:
        import torch

        side = self._side // pipeline.vae_scale_factor
        channels = pipeline.vae.config.latent_channels
        latents = torch.randn(1, channels, side, side, device=pipeline.device)
        return timed(lambda: decode(latents, pipeline))


def timed(work: Callable[[], Any]) -> float:
    """Seconds that the work takes, that of a GPU included."""
    import torch

    started = time.perf_counter()
    with torch.no_grad():
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ceiling_teraflops(device: Device) -> float:
    """The best speed of a large matrix product in the device's dtype, 10^12 operations a second."""
    import torch

    shape = (CEILING_SIDE, CEILING_SIDE)
    matrix = torch.ones(shape, dtype=device.torch_dtype, device=device.name)
    best = min(timed(lambda: matrix @ matrix) for _ in range(8))
    return 2 * CEILING_SIDE**3 / best / 1e12


def teraflop_of_a_pass(subject: Subject, side: int) -> float:
    """10^12 operations of a guided pass, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    unet = subject.ours.unet
    latent_side = side // subject.ours.vae_scale_factor
    options = {"dtype": unet.dtype, "device": unet.device}
    sample = torch.randn(2, unet.config.in_channels, latent_side, latent_side, **options)
    words = torch.randn(2, 77, unet.config.cross_attention_dim, **options)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(sample, 500, words, return_dict=False)
    return counter.get_total_flops() / 1e12


def peak_memory(spec: ModelSpec | None, device: Device, side: int, way: str) -> int | None:
    """Bytes at the peak of a fresh process that loads the model and makes a picture in one step.

    `way` is plain, sliced or ours. None where the system does not tell.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_tell_peak, args=(sender, spec, device, side, way))
    child.start()
    sender.close()
    try:
        found: int | None = receiver.recv()
    except EOFError:  # the child was killed: too large for this machine
        found = None
    child.join()
    return found


def _tell_peak(sender: Any, spec: ModelSpec | None, device: Device, side: int, way: str) -> None:
    ours = way == "ours"
    subject = load_subject(spec, device, plain=not ours, ours=ours)
    if ours:
        request = GenerationRequest(PROMPT, seed=1, width=side, height=side, num_inference_steps=1)
        subject.make_ours(request.resolve(subject.spec))
    else:
        subject.make_plain(side, 1, slicing=way == "sliced")
    sender.send(_own_peak())


def _own_peak() -> int | None:
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would tell the peak of the parent, if that was higher
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
