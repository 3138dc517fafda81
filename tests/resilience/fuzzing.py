"""Feeds what reads bytes from outside with anything.

`python -m tests.resilience.fuzzing NAME SECONDS` runs one under atheris for so long. A find
is left in `finds/NAME` and tried again by `test_fuzzing.py` from then on.
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

FINDS = Path(__file__).with_name("fuzz_corpus")
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


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def infotext(data: bytes) -> None:
    from canvas.history.infotext import read_infotext

    read_infotext(text_of(data))


def read_both(picture: bytes) -> None:
    from canvas.history.metadata import read_settings
    from canvas.history.third_party_metadata import read_metadata

    read_settings(io.BytesIO(picture))
    read_metadata(io.BytesIO(picture))


def chunk(data: bytes) -> None:
    text = text_of(data)
    for key in ("magic-canvas", "parameters", "prompt", "workflow", "invokeai_metadata", "Dream"):
        read_both(small_png(**{key: text}))


def xmp(data: bytes) -> None:
    for kind in ("jpeg", "webp"):
        target = io.BytesIO()
        Image.new("RGB", (64, 64)).save(target, kind, xmp=data[:60_000])
        read_both(target.getvalue())


def png(data: bytes) -> None:
    read_both(data)


def archive(data: bytes) -> None:
    from canvas.history.database import Database
    from canvas.history.image_files import ImageStorage
    from canvas.history.import_zip import import_zip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.zip")
        path.write_bytes(data)
        store = Database(Path(folder, "x.db"))
        try:
            import_zip(store, ImageStorage(Path(folder, "outputs")), path, "local")
        finally:
            store.close()
        assert {one.name for one in Path(folder).iterdir()} <= {
            *("x.zip", "x.db", "x.db-wal", "x.db-shm", "outputs"),
        }, "written elsewhere"


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
        store = Database(Path(folder, "x.db"))
        try:
            store.search(Query(owner="local", text=text_of(data)))
            store.totals(Query(owner="local", text=text_of(data)))
        finally:
            store.close()


def weights(data: bytes) -> None:
    from canvas.engine.prompt_weighting import split_chunks, strip_weights

    split_chunks(text_of(data))
    strip_weights(text_of(data))


def wishes(data: bytes) -> None:
    from canvas.dynamic_prompts import expand
    from canvas.models.loras import parse_lora_tags

    parse_lora_tags(text_of(data))
    expand(text_of(data), Path("there", "is", "none"))


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
    "wishes": (wishes, b"{red|blue} fox {a|{b|c}} \\{ <lora:x:0.8>"),
    "lora": (lora, len(LORA).to_bytes(8, "little") + LORA + bytes(4)),
}


def try_(name: str, data: bytes) -> None:
    """Whatever the program foresees is fine; any other error is a find."""
    try:
        TARGETS[name][0](data)
    except CanvasError as error:
        assert str(error), "an error without words"


def main(name: str, seconds: str) -> None:
    """Feed one target until the time is over or something is found."""
    import atheris

    with atheris.instrument_imports(include=["canvas"]):
        pass
    finds = FINDS / name
    finds.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        Path(corpus, "seed").write_bytes(TARGETS[name][1])
        options = [f"-max_total_time={seconds}", f"-artifact_prefix={finds}/", "-max_len=4096"]
        options += ["-timeout=20", "-rss_limit_mb=4096", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, corpus], lambda data: try_(name, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
