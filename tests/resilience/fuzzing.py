"""Fuzz targets: the parsers of untrusted input.

`python -m tests.resilience.fuzzing NAME SECONDS` fuzzes one with atheris. A crash is saved in
`fuzz_corpus/NAME`, which `test_fuzzing.py` replays.
"""

from __future__ import annotations

import io
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from canvas.errors import CanvasError

CORPUS = Path(__file__).with_name("fuzz_corpus")
Target = Callable[[bytes], None]

INFOTEXT = (
    b"a fox, (red:1.2) <lora:x:0.5>\nNegative prompt: dull\nSteps: 20, Sampler: DPM++ 2M Karras, "
    b'CFG scale: 7, Seed: 5, Size: 512x512, Model: tiny, Lora hashes: "a: b, c: d", Version: v1'
)
SETTINGS = b'{"prompt": "a fox", "seed": 5, "width": 512, "notes": ["x"], "loras": [["a", 1.0]]}'
XMP = b'<canvas:settings xmlns:canvas="urn:magic-canvas:1">eyJwcm9tcHQiOiAiYSJ9</canvas:settings>'
MODEL = (
    b'[mine]\nname = "org/model"\nsize = "3GB"\nspeed = "Fast"\nquality = "Good"\n'
    b'resolution = 512\ntype = "stable_diffusion"\nmirrors = ["a/b"]\n'
)
LORA = b'{"a.lora_down.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
LORA += b'"__metadata__":{"ss_tag_frequency":"{}"}}'


def small_png(**texts: str) -> bytes:
    settings, target = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        settings.add_itxt(key, text)
    Image.new("RGB", (64, 64)).save(target, "png", pnginfo=settings)
    return target.getvalue()


def small_zip() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("metadata.jsonl", SETTINGS + b"\n")
        archive.writestr("images/a.png", small_png(parameters="a fox\nSteps: 5"))
    return target.getvalue()


def decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def infotext(data: bytes) -> None:
    from canvas.history.infotext import read_infotext

    read_infotext(decode(data))


def read_image(content: bytes) -> None:
    from canvas.history.metadata import read_settings
    from canvas.history.third_party_metadata import read_metadata

    read_settings(io.BytesIO(content))
    read_metadata(io.BytesIO(content))


def chunk(data: bytes) -> None:
    text = decode(data)
    for key in ("magic-canvas", "parameters", "prompt", "workflow", "invokeai_metadata", "Dream"):
        read_image(small_png(**{key: text}))


def xmp(data: bytes) -> None:
    for kind in ("jpeg", "webp"):
        target = io.BytesIO()
        Image.new("RGB", (64, 64)).save(target, kind, xmp=data[:60_000])
        read_image(target.getvalue())


def png(data: bytes) -> None:
    read_image(data)


def archive(data: bytes) -> None:
    from canvas.history.database import Database
    from canvas.history.image_files import ImageStorage
    from canvas.history.import_zip import import_zip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.zip")
        path.write_bytes(data)
        database = Database(Path(folder, "x.db"))
        try:
            import_zip(database, ImageStorage(Path(folder, "outputs")), path, "local")
        finally:
            database.close()
        assert {path.name for path in Path(folder).iterdir()} <= {
            *("x.zip", "x.db", "x.db-wal", "x.db-shm", "outputs")
        }, "a file outside the data folder"


def models(data: bytes) -> None:
    from canvas.catalog import Catalog

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "models.toml")
        path.write_bytes(data)
        Catalog({}).load(path)


def search(data: bytes) -> None:
    from canvas.history.database import Database
    from canvas.history.queries import Query

    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder, "x.db"))
        try:
            database.search(Query(owner="local", text=decode(data)))
            database.totals(Query(owner="local", text=decode(data)))
        finally:
            database.close()


def weights(data: bytes) -> None:
    from canvas.prompt_syntax import split_chunks, strip_weights

    split_chunks(decode(data))
    strip_weights(decode(data))


def prompts(data: bytes) -> None:
    from canvas.dynamic_prompts import expand
    from canvas.prompt_syntax import parse_lora_tags

    parse_lora_tags(decode(data))
    expand(decode(data), Path("no", "such", "folder"))


def lora(data: bytes) -> None:
    from canvas.models.loras import read_lora

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        path.write_bytes(data)
        read_lora(path)


TARGETS: dict[str, tuple[Target, bytes]] = {
    "infotext": (infotext, INFOTEXT),
    "chunk": (chunk, SETTINGS),
    "xmp": (xmp, XMP),
    "png": (png, small_png(parameters=INFOTEXT.decode())),
    "archive": (archive, small_zip()),
    "models": (models, MODEL),
    "search": (search, b'"red fox" -snow AND (owl* OR NEAR(a b, 3)) prompt:x ^y'),
    "weights": (weights, b"a (red:1.3) [fox] ((x)) \\( BREAK (a:0.5)"),
    "prompts": (prompts, b"{red|blue} fox {a|{b|c}} \\{ <lora:x:0.8>"),
    "lora": (lora, len(LORA).to_bytes(8, "little") + LORA + bytes(4)),
}


def run_target(name: str, data: bytes) -> None:
    """Run a target; any error other than a CanvasError with a message is a crash."""
    try:
        TARGETS[name][0](data)
    except CanvasError as error:
        assert str(error), "an error without a message"


def main(name: str, seconds: str) -> None:
    """Fuzz one target until the time is over or it crashes."""
    import atheris

    with atheris.instrument_imports(include=["canvas"]):
        pass
    crashes = CORPUS / name
    crashes.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        Path(corpus, "seed").write_bytes(TARGETS[name][1])
        options = [f"-max_total_time={seconds}", f"-artifact_prefix={crashes}/", "-max_len=4096"]
        options += ["-timeout=20", "-rss_limit_mb=4096", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, corpus], lambda data: run_target(name, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
