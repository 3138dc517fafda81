"""OpenVINO's graphs: sizes, batches, inputs and outputs, on graphs of a few operations; and conversions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from canvas.engine.device import Device
from canvas.engine.openvino import conversion, int8, runtime
from canvas.engine.openvino.conversion import DECODER, SHALLOW_UNET, UNET, UNET_CONFIG
from canvas.engine.openvino.modules import OpenVinoDecoder, OpenVinoUNet
from canvas.engine.openvino.runtime import Graph
from canvas.engine.optimizations.deepcache import CACHE_BRANCH_DEPTH, UNetForward
from tests.tiny_xl import make_tiny_xl

CPU = Device("cpu", "float32", "test")
SAMPLE, TIMESTEP, EMBEDS = torch.arange(24.0).reshape(1, 4, 2, 3), torch.tensor([2.0]), torch.full((1, 5, 3), 0.5)
FEATURES = torch.full((1, 4, 2, 3), 100.0)


def save_graph(path: Path, compute: Any, *shapes: list[int]) -> None:
    """Save a graph whose outputs `compute` makes of its inputs."""
    openvino = runtime.import_openvino()
    from openvino import opset13

    inputs = [opset13.parameter(shape, name=f"input{index}") for index, shape in enumerate(shapes)]
    outputs = compute(opset13, *inputs)
    openvino.save_model(openvino.Model(list(outputs), inputs), str(path))


def full_pass(ops: Any, sample: Any, timestep: Any, embeds: Any) -> Any:
    """The prediction depends on the whole batch, so that one that is computed at once differs."""
    whole = ops.reduce_max(sample, [0, 1, 2, 3])
    prediction = ops.add(ops.multiply(sample, timestep), ops.add(whole, ops.reduce_max(embeds, [0, 1, 2])))
    return prediction, ops.add(sample, np.float32(100))


def expected_prediction(sample: torch.Tensor, timestep: float = 2.0) -> torch.Tensor:
    return sample * timestep + sample.max() + 0.5


def shallow_pass(ops: Any, sample: Any, timestep: Any, embeds: Any, features: Any) -> Any:
    return [ops.add(ops.add(ops.multiply(sample, timestep), features), ops.reduce_max(embeds, [0, 1, 2]))]


def int8_pass(ops: Any, sample: Any, timestep: Any, embeds: Any) -> Any:
    prediction, features = full_pass(ops, sample, timestep, embeds)
    return ops.add(prediction, np.float32(0.25)), features


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `convert_unet`, `quantize` and `convert_decoder` write it."""
    folder = tmp_path_factory.mktemp("graphs")
    shapes = [-1, 4, -1, -1], [1], [-1, -1, 3]
    save_graph(folder / UNET, full_pass, *shapes)
    save_graph(folder / SHALLOW_UNET, shallow_pass, *shapes, [-1, 4, -1, -1])
    save_graph(folder / int8.INT8_UNET, int8_pass, *shapes)
    save_graph(folder / DECODER, lambda ops, sample: [ops.add(sample, ops.reduce_max(sample, [0, 1, 2, 3]))], shapes[0])
    (folder / UNET_CONFIG).write_text(json.dumps({"addition_embed_type": None}))
    weights = (folder / int8.INT8_UNET).with_suffix(".bin").stat().st_size
    report = {"error": 0.05, "seconds": 1.0, "seconds_16": 2.0, "bytes": weights}
    (folder / int8.REPORT).write_text(json.dumps(report))
    return folder


@pytest.fixture
def unet(folder: Path) -> OpenVinoUNet:
    return OpenVinoUNet(folder, runtime.compile_config(CPU))


class RecordedGraph(Graph):
    """A graph that notes for which shapes it runs."""

    def compiled(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        self.shapes = [*getattr(self, "shapes", []), shapes]
        return super().compiled(shapes)


@pytest.fixture
def full_graph(folder: Path) -> RecordedGraph:
    return RecordedGraph(folder / UNET, runtime.compile_config(CPU))


@pytest.mark.parametrize(("precision", "num_bytes"), [("f32", 2000), ("bf16", 1000)])
def test_the_memory_of_a_graph_is_its_weights_in_the_computed_precision(
    tmp_path: Path, precision: str, num_bytes: int
) -> None:
    (tmp_path / "unet.bin").write_bytes(bytes(1000))
    assert Graph(tmp_path / "unet.xml", {"INFERENCE_PRECISION_HINT": precision}).num_bytes == num_bytes


def test_a_small_model_computes_a_batch_at_once(full_graph: RecordedGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MAX_BYTES", full_graph.num_bytes)
    batch = torch.cat([SAMPLE, -SAMPLE])
    prediction, features = full_graph(batch, TIMESTEP, torch.cat([EMBEDS, EMBEDS]))
    assert torch.equal(prediction, expected_prediction(batch))
    assert torch.equal(features, batch + 100)
    assert [shapes[0] for shapes in full_graph.shapes] == [(2, 4, 2, 3)]


def test_a_large_model_computes_a_batch_one_by_one(full_graph: RecordedGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MAX_BYTES", full_graph.num_bytes - 1)
    samples = [SAMPLE, SAMPLE + 7]
    prediction, features = full_graph(torch.cat(samples), TIMESTEP, torch.cat([EMBEDS] * 2))
    assert torch.equal(prediction, torch.cat([expected_prediction(each) for each in samples]))
    assert torch.equal(features, torch.cat(samples) + 100)
    assert full_graph.shapes == [((1, 4, 2, 3), (1,), (1, 5, 3))] * 2


def test_the_size_that_was_used_longest_ago_is_compiled_again(
    full_graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "MAX_BYTES", full_graph.num_bytes)
    sizes = [((1, 4, 2, width), (1,), (1, 5, 3)) for width in range(1, runtime.MAX_SIZES + 2)]
    compiled = [full_graph.compiled(shapes) for shapes in sizes[:-1]]
    assert full_graph.compiled(sizes[0]) is compiled[0]
    full_graph.compiled(sizes[-1])
    assert full_graph.compiled(sizes[0]) is compiled[0]
    assert full_graph.compiled(sizes[2]) is compiled[2]
    assert full_graph.compiled(sizes[1]) is not compiled[1]


def test_one_size_of_a_large_model_is_kept(full_graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MAX_BYTES", full_graph.num_bytes - 1)
    first, second = (((1, 4, 2, width), (1,), (1, 5, 3)) for width in (1, 2))
    before = full_graph.compiled(first)
    assert full_graph.compiled(first) is before
    full_graph.compiled(second)
    assert full_graph.compiled(first) is not before
    before = full_graph.compiled(first)
    full_graph.release()
    assert full_graph.compiled(first) is not before


@pytest.mark.parametrize(
    ("dtype", "capabilities", "precision"),
    [("bfloat16", ["FP32", "BF16"], "bf16"), ("bfloat16", ["FP32"], "f32"), ("float32", ["FP32", "BF16"], "f32")],
)
def test_graphs_compute_in_bfloat16_where_the_processor_can(
    monkeypatch: pytest.MonkeyPatch, dtype: str, capabilities: list[str], precision: str
) -> None:
    monkeypatch.setattr(runtime, "core", lambda: SimpleNamespace(get_property=lambda *_: capabilities))
    config = runtime.compile_config(Device("cpu", dtype, "test"))
    assert config["INFERENCE_PRECISION_HINT"] == precision
    assert config["ENABLE_CPU_PINNING"] is False


def test_the_process_has_one_core_of_openvino() -> None:
    assert runtime.is_installed()
    assert runtime.core() is runtime.core()


@pytest.mark.parametrize("timestep", [2, torch.tensor(2), torch.tensor([2, 2])], ids=["number", "scalar", "batch"])
def test_both_passes_give_what_their_graphs_compute(unet: OpenVinoUNet, timestep: Any) -> None:
    prediction, features = unet.full_forward(SAMPLE, timestep, EMBEDS)
    assert torch.equal(prediction, expected_prediction(SAMPLE))
    assert torch.equal(features, SAMPLE + 100)
    [shallow] = unet.shallow_forward(SAMPLE, timestep, EMBEDS, FEATURES)
    assert torch.equal(shallow, SAMPLE * 2 + 100.5)
    assert torch.equal(unet(SAMPLE, timestep, EMBEDS).sample, prediction)
    assert torch.equal(unet(SAMPLE, timestep, encoder_hidden_states=EMBEDS, return_dict=False)[0], prediction)


def test_inputs_that_are_none_are_as_if_left_out(unet: OpenVinoUNet) -> None:
    options: dict[str, Any] = {"timestep_cond": None, "added_cond_kwargs": None, "return_dict": False}
    assert torch.equal(unet.full_forward(SAMPLE, 2, EMBEDS, **options)[0], expected_prediction(SAMPLE))
    with pytest.raises(ValueError, match="image_embeds"):
        unet(SAMPLE, 2, EMBEDS, added_cond_kwargs={"image_embeds": EMBEDS})
    with pytest.raises(ValueError, match="class_labels"):
        unet(SAMPLE, 2, EMBEDS, class_labels=TIMESTEP)


def test_a_recorder_gets_the_inputs_of_full_passes(unet: OpenVinoUNet) -> None:
    recorded: list[Any] = []
    recorder: Any = SimpleNamespace(add=recorded.append)
    unet.recorder = recorder
    unet(SAMPLE, 2, EMBEDS)
    unet.shallow_forward(SAMPLE, 2, EMBEDS, FEATURES)
    [arrays] = recorded
    assert [each.tolist() for each in arrays] == [SAMPLE.tolist(), [2.0], EMBEDS.tolist()]


def test_turbo_uses_the_int8_graph(unet: OpenVinoUNet) -> None:
    def prediction() -> torch.Tensor:
        output: torch.Tensor = unet(SAMPLE, 2, EMBEDS).sample
        return output - expected_prediction(SAMPLE)

    assert (unet.engine, float(prediction().mean())) == ("openvino", 0)
    unet.use_preset("turbo")
    assert (unet.engine, float(prediction().mean())) == ("openvino int8", 0.25)
    compiled = unet.int8
    unet.use_preset("turbo")
    assert unet.int8 is compiled
    unet.use_preset("quality")
    assert (unet.engine, float(prediction().mean())) == ("openvino", 0)


@pytest.mark.parametrize(("rest", "kept"), [(0, True), (-1, False)], ids=["small", "large"])
def test_only_one_graph_of_a_large_model_is_in_memory(
    unet: OpenVinoUNet, monkeypatch: pytest.MonkeyPatch, rest: int, kept: bool
) -> None:
    shapes = (1, 4, 2, 3), (1,), (1, 5, 3)
    before = unet.full.compiled(shapes)
    monkeypatch.setattr(runtime, "MAX_BYTES", unet.full.num_bytes + rest)
    unet.use_preset("quality")
    assert unet.full.compiled(shapes) is before
    unet.use_preset("turbo")
    assert (unet.full.compiled(shapes) is before) is kept


def test_the_decoder_computes_images_one_by_one(folder: Path) -> None:
    decoder = OpenVinoDecoder(folder, runtime.compile_config(CPU))
    assert torch.equal(decoder(torch.cat([SAMPLE, SAMPLE + 7])), torch.cat([SAMPLE + 23, SAMPLE + 37]))


@pytest.mark.parametrize(
    "changes",
    [{name: 1} for name in conversion.UNSUPPORTED]
    + [{"attention_type": "gated"}, {"addition_embed_type": "image"}, {"addition_embed_type": "text"}],
    ids=lambda changes: "-".join(map(str, next(iter(changes.items())))),
)
def test_unets_with_other_inputs_are_not_converted(unet: OpenVinoUNet, changes: dict[str, Any]) -> None:
    pipeline = SimpleNamespace(unet=unet)
    plain = {**dict.fromkeys(conversion.UNSUPPORTED), "attention_type": "default"}
    for addition in (None, "text_time"):
        unet.register_to_config(**plain, addition_embed_type=addition)
        assert conversion.is_supported(pipeline)
    unet.register_to_config(**{**plain, "addition_embed_type": None, **changes})
    assert not conversion.is_supported(pipeline)
    assert not conversion.is_supported(SimpleNamespace(unet=torch.nn.Linear(1, 1)))


def test_example_inputs_have_the_shapes_of_the_configuration() -> None:
    config = {
        "block_out_channels": (8, 16, 16),
        "in_channels": 9,
        "cross_attention_dim": 24,
        "addition_embed_type": None,
        "projection_class_embeddings_input_dim": 68,
        "addition_time_embed_dim": 8,
    }
    assert [tuple(each.shape) for each in conversion.example_inputs(config)] == [(1, 9, 9, 13), (1,), (1, 77, 24)]
    config["addition_embed_type"] = "text_time"
    *inputs, pooled, times = conversion.example_inputs(config, (16, 24), tokens=5)
    assert [tuple(each.shape) for each in inputs] == [(1, 9, 16, 24), (1,), (1, 5, 24)]
    assert pooled.shape == (1, 68 - 6 * 8)
    assert times.tolist() == [[128, 192, 0, 0, 128, 192]]


def test_a_conversion_needs_the_weights_in_float32() -> None:
    assert conversion.conversion_bytes(torch.nn.Linear(3, 5).to(torch.bfloat16)) == 4 * (3 * 5 + 5)


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "converted" / "unet"
    with pytest.raises(RuntimeError), conversion.new_folder(folder) as part:
        (part / "unet.bin").write_bytes(b"half")
        raise RuntimeError
    assert list(folder.parent.iterdir()) == []
    for content in (b"weights", b"other weights"):
        with conversion.new_folder(folder) as part:
            (part / "unet.bin").write_bytes(content)
            assert not folder.exists() or (folder / "unet.bin").read_bytes() != content
        assert (folder / "unet.bin").read_bytes() == content
        assert json.loads((folder / conversion.SIZES).read_text()) == {"unet.bin": len(content)}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.fixture(scope="module")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A tiny SDXL's pipeline in bfloat16."""
    from diffusers import StableDiffusionXLPipeline

    folder = make_tiny_xl(tmp_path_factory.mktemp("xl"))
    yield StableDiffusionXLPipeline.from_pretrained(folder).to(dtype=torch.bfloat16)


@pytest.mark.slow
@torch.no_grad()
def test_the_graphs_of_sdxl_fit_all_sizes_and_give_the_results_of_torch(tiny_xl: Any, tmp_path: Path) -> None:
    unet = tiny_xl.unet
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    conversion.convert_unet(unet, tmp_path / "unet")
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert {each.dtype for each in unet.parameters()} == {torch.bfloat16}
    parameters = sum(each.numel() for each in unet.parameters())
    assert (tmp_path / "unet" / "unet.bin").stat().st_size < 3 * parameters  # in 16 bits

    shapes = ["[?,4,?,?]", "[1]", "[?,?,64]", "[?,32]", "[?,6]"]
    for name, expected_shapes in {UNET: shapes, SHALLOW_UNET: [*shapes[:3], "[?,48,?,?]", *shapes[3:]]}.items():
        inputs = runtime.core().read_model(str(tmp_path / "unet" / name)).inputs
        assert [str(each.partial_shape) for each in inputs] == expected_shapes, name

    converted = OpenVinoUNet(tmp_path / "unet", runtime.compile_config(CPU))
    assert converted.add_embedding.linear_1.in_features == unet.add_embedding.linear_1.in_features
    unet.float()
    sample, timestep, embeds, pooled, times = conversion.example_inputs(unet.config, (6, 8))
    sample, embeds, pooled, times = (torch.cat([each, each / 2]) for each in (sample, embeds, pooled, times))
    added = {"text_embeds": pooled, "time_ids": times}
    passes = UNetForward(unet, CACHE_BRANCH_DEPTH)
    expected = passes.full_forward(sample, timestep, embeds, added_cond_kwargs=added)
    outputs = converted.full_forward(sample, timestep, embeds, added_cond_kwargs=added)
    shallow = converted.shallow_forward(sample, timestep, embeds, expected[1], added_cond_kwargs=added)[0]
    for output, reference in zip([*outputs, shallow], [*expected, expected[0]], strict=True):
        torch.testing.assert_close(output, reference, atol=0.02, rtol=0.02)
