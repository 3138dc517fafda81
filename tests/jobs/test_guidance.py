"""ControlNets and IP-Adapters of a request: found, downloaded with their bytes reported, and used."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from canvas import GenerationRequest, Studio
from canvas.catalog import MODELS, Catalog, ModelSpec
from canvas.engine.device import Device
from canvas.engine.estimate import estimate_seconds
from canvas.errors import InvalidInput, ModelCorrupted, ModelUnavailable
from canvas.guidance import ControlImage, ReferenceImage
from canvas.models import addons, controlnets, ip_adapters
from canvas.models.download import DownloadProgress
from canvas.models.hub_client import Hub
from canvas.models.single_file import read_local
from canvas.settings import Settings
from tests.hub_server import LocalHub
from tests.tiny_guidance import make_drawing, make_photo, make_tiny_adapter, make_tiny_controlnet, make_tiny_encoder

CONTROL, ADAPTER = "tiny/control", f"{ip_adapters.REPO_ID}:models/ip-adapter_sd15.safetensors"


@pytest.fixture(scope="module")
def repositories(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet and an IP-Adapter for the tiny pipeline, as on the Hub."""
    from diffusers import StableDiffusionPipeline

    root = tmp_path_factory.mktemp("repositories")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    make_tiny_controlnet(pipeline, root / CONTROL)
    make_tiny_encoder(root / ip_adapters.REPO_ID / ip_adapters.ENCODER_FOLDER)
    make_tiny_adapter(pipeline.unet, root / ip_adapters.REPO_ID / "models/ip-adapter_sd15.safetensors")
    return root


@pytest.fixture
def online(hub: LocalHub, repositories: Path, tmp_path: Path) -> Hub:
    for repo_id in (CONTROL, ip_adapters.REPO_ID):
        hub.add(repo_id, repositories / repo_id)
    return Hub(endpoint=hub.url, cache_dir=tmp_path / "hub")


@pytest.mark.slow
def test_a_job_downloads_what_it_needs_once(
    settings: Settings, online: Hub, hub: LocalHub, tiny_spec: ModelSpec
) -> None:
    models = Catalog(MODELS)
    models[tiny_spec.key] = tiny_spec
    with Studio(settings, models, online) as studio:
        photo, drawing = (studio.inputs.upload(image).name for image in (make_photo(), make_drawing()))
        request = GenerationRequest(
            "a fox",
            model_key=tiny_spec.key,
            seed=1,
            control_images=(ControlImage(drawing, model=CONTROL),),
            reference_images=(ReferenceImage(photo, model=ADAPTER),),
        )
        job = studio.submit(request)
        statuses, labels = [], set()
        for update in job.subscribe(timeout=60):
            statuses.append(update.status)
            if isinstance(update.progress, DownloadProgress):
                labels.add(update.progress.label)
            if job.finished:
                break
        assert job.error is None
        assert "downloading" in statuses
        assert labels <= {CONTROL, ip_adapters.REPO_ID}
        [image] = job.images
        assert image.request.control_images == (ControlImage(drawing, "lineart", detect=False, model=CONTROL),)
        assert image.request.reference_images == (ReferenceImage(photo, model=ADAPTER),)
        hub.close()
        [again] = studio.generate(image.request)
        assert (
            studio.image_path(again.filename).read_bytes()[-2000:]
            == (studio.image_path(image.filename).read_bytes()[-2000:])
        ), "the same pixels at the end of the file"
        assert {photo, drawing} <= {path.name for path in studio.settings.uploads_dir.iterdir()}


def test_a_control_image_takes_its_part_of_the_time(studio: Studio) -> None:
    plain, spec = GenerationRequest("a fox", model_key="small"), studio.models["small"]
    device = Device("cpu", "float32", "test", gflops=500.0)
    whole = ControlImage("a.png", "canny", detect=True)
    seconds = [
        estimate_seconds(replace(plain, control_images=items).with_defaults(spec), spec, device)
        for items in ((), (whole._replace(end=0.5),), (whole,), (whole, whole))
    ]
    assert None not in seconds
    assert seconds == sorted(seconds)  # type: ignore[type-var]
    assert len(set(seconds)) == 4


@pytest.mark.slow
def test_fp16_weights_are_preferred_and_others_refused(
    hub: LocalHub, online: Hub, repositories: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    weights = (repositories / CONTROL / controlnets.WEIGHTS[1]).read_bytes()
    for name in controlnets.WEIGHTS:
        (folder / name).write_bytes(weights)
    (folder / "config.json").write_bytes((repositories / CONTROL / "config.json").read_bytes())
    hub.add("tiny/both", folder)
    plan = controlnets.plan_download("tiny/both", hub=online)
    assert [file.path for file in plan.files] == ["config.json", controlnets.WEIGHTS[0]]
    hub.add("tiny/pickle", tmp_path / "hub")
    with pytest.raises((ModelCorrupted, ModelUnavailable)):
        controlnets.plan_download("tiny/pickle", hub=online)


def test_usual_models_fit_the_family_and_others_are_sentences(tiny_spec: ModelSpec) -> None:
    tiny = read_local(Path(tiny_spec.name))
    xl = replace(tiny_spec, type="stable_diffusion_xl")
    assert controlnets.usual_model("canny", "stable_diffusion", tiny_spec, None).endswith("sd15_canny")
    assert controlnets.usual_model("tile", "stable_diffusion_xl", xl, None) == "xinsir/controlnet-tile-sdxl-1.0"
    with pytest.raises(InvalidInput, match="no usual ControlNet of the kind canny"):
        controlnets.usual_model("canny", "stable_diffusion", tiny_spec, tiny)
    with pytest.raises(InvalidInput, match="takes no control images"):
        controlnets.usual_model("canny", "sana", tiny_spec, tiny)
    with pytest.raises(InvalidInput, match="first: which ControlNets fit it"):
        controlnets.usual_model("canny", "", tiny_spec, None)
    assert ip_adapters.usual_adapter("face", "stable_diffusion", tiny_spec, None).endswith("plus-face_sd15.safetensors")
    assert ip_adapters.usual_adapter("style", "flux2_klein", tiny_spec, tiny) == ""
    with pytest.raises(InvalidInput, match="takes no reference images"):
        ip_adapters.usual_adapter("style", "flux", tiny_spec, tiny)


def test_names_outside_of_the_folders_are_not_found(tmp_path: Path, online: Hub) -> None:
    for name in ("..", "a/../../b", "/etc", "missing"):
        with pytest.raises(InvalidInput, match="not found"):
            controlnets.find(name, tmp_path, hub=online)
        with pytest.raises(InvalidInput, match="not found"):
            ip_adapters.find(name, tmp_path, hub=online)


def test_visitors_download_nothing(settings: Settings, online: Hub, tiny_spec: ModelSpec) -> None:
    models = Catalog(MODELS)
    models[tiny_spec.key] = tiny_spec
    public = settings.model_copy(update={"safety_level": "off"})
    with Studio(public, models, online) as studio:
        studio.inputs._allow_downloads = False  # as on a public server
        name = studio.inputs.upload(make_photo()).name
        for fields in (
            {"control_images": (ControlImage(name, model=CONTROL),)},
            {"reference_images": (ReferenceImage(name, model=ADAPTER),)},
        ):
            with pytest.raises(Exception, match="visitors cannot download it"):
                studio.submit(GenerationRequest("a fox", model_key=tiny_spec.key, **fields))  # type: ignore[arg-type]


@pytest.mark.slow
def test_depth_estimator_is_an_add_on(hub: LocalHub, online: Hub, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    from canvas.engine.control_detectors import detect

    folder = tmp_path / "depth"
    config = DepthAnythingConfig(
        backbone_config={
            "model_type": "dinov2",
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 70,
            "patch_size": 14,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            "reshape_hidden_states": False,
        },
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    addon = addons.ADDONS[addons.DEPTH]
    hub.add(addon.repo_id, folder)
    addons.fetch_files(addon, lambda progress: None, threading.Event(), hub=online)
    found = detect("depth", make_photo((96, 64)), addons.find(addons.DEPTH, hub=online))
    assert isinstance(found, Image.Image)
    assert found.size == (96, 64)
    assert found.getextrema() == ((0, 255),) * 3
