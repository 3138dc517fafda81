"""Runs published client packages, unchanged, against a server, and prints what each of them did.

Not part of the usual suite, as it installs packages from npm and PyPI into a folder:

    python -m tests.client_packages FOLDER
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import httpx

from tests.app_server import serving

NPM = ("@ai-sdk/openai", "ai", "openai", "@gradio/client", "openapi-typescript", "typescript")
PYPI = ("langchain-community", "openai", "openapi-python-client")
# In each script, URL is the address of the server.
NODE_SCRIPTS = {
    "openai (npm), gpt-image-1, 1024x1024": """
import OpenAI from "openai";
const client = new OpenAI({baseURL: URL + "/v1", apiKey: "x"});
const result = await client.images.generate({model: "gpt-image-1", prompt: "a fox", size: "1024x1024"});
if (!result.data[0].b64_json) throw new Error("no b64_json");
console.log(result.size, result.data[0].revised_prompt);
""",
    "@ai-sdk/openai, dall-e-3, 1024x1024": """
import {createOpenAI} from "@ai-sdk/openai";
import {experimental_generateImage as old, generateImage} from "ai";
const openai = createOpenAI({baseURL: URL + "/v1", apiKey: "x"});
const {image} = await (generateImage ?? old)({model: openai.image("dall-e-3"), prompt: "a fox", size: "1024x1024"});
console.log(image.mediaType, image.uint8Array.length, "bytes");
""",
    "@ai-sdk/openai, edit with gpt-image-1": """
import {createOpenAI} from "@ai-sdk/openai";
import {experimental_generateImage as old, generateImage} from "ai";
const openai = createOpenAI({baseURL: URL + "/v1", apiKey: "x"});
const generate = generateImage ?? old;
const model = openai.image("gpt-image-1");
const first = await generate({model, prompt: "a fox", size: "512x512"});
const {image} = await generate({model, prompt: {text: "a red fox", images: [first.image.uint8Array]}, size: "512x512"});
console.log(image.mediaType, image.uint8Array.length, "bytes");
""",
    "@gradio/client, positional, null": """
import {Client} from "@gradio/client";
const client = await Client.connect(URL + "/");
const {data} = await client.predict("/generate", ["a fox", null, null, null, null, 1]);
console.log(data[1].seed, data[0].url);
try { await client.predict("/generate", ["a fox", null, null, 7]); throw new Error("not refused"); }
catch (error) {
  if (!String(error.message).includes("Width must be")) throw new Error("message lost: " + JSON.stringify(error));
  console.log("refused:", error.message);
}
client.close();
process.exit(0);
""",
}
LANGCHAIN = """
import sys
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
wrapper = DallEAPIWrapper(api_key="x", base_url=sys.argv[1] + "/v1", model="dall-e-3")
url = wrapper.run("a fox")
assert url.startswith(sys.argv[1]), url
print("1024x1024", url)
"""


def install(folder: Path) -> Path:
    """Install the packages into a folder; returns its Python."""
    python = folder / "venv" / "bin" / "python"
    if not (folder / "node_modules").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
        subprocess.run(["npm", "install", "--silent", *NPM], cwd=folder, check=True)
    if not python.is_file():
        venv.create(folder / "venv", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PYPI], check=True)
    return python


def run(name: str, *command: str | Path, folder: Path) -> bool:
    """Run a client and print what it said."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    output = (done.stdout + (done.stderr if done.returncode else "")).strip()
    return report(done.returncode == 0, f"{name}: {output[-1500:]}")


def report(success: bool, text: str) -> bool:
    """Print a line; returns `success`."""
    sys.stdout.write(f"{'ok  ' if success else 'FAIL'} {text}\n")
    sys.stdout.flush()
    return success


def main(folder: Path) -> int:
    """The number of clients that failed."""
    os.environ.setdefault("CANVAS_ENGINE", "torch")
    python = install(folder)
    failed = 0
    with tempfile.TemporaryDirectory() as data_dir, serving(Path(data_dir)) as studio:
        for number, (name, script) in enumerate(NODE_SCRIPTS.items()):
            file = folder / f"client{number}.mjs"
            file.write_text(f"const URL = {studio.url!r};\n{script}", encoding="utf-8")
            failed += not run(name, "node", file, folder=folder)
        failed += not run("LangChain DallEAPIWrapper", python, "-c", LANGCHAIN, studio.url, folder=folder)
        (folder / "openapi.json").write_bytes(httpx.get(f"{studio.url}/openapi.json").content)
    failed += not run(
        "openapi-typescript", "npx", "openapi-typescript", "openapi.json", "-o", "schema.ts", folder=folder
    )
    failed += not run("typescript", "npx", "tsc", "--noEmit", "--strict", "schema.ts", folder=folder)
    failed += not run(
        "openapi-python-client", python.with_name("openapi-python-client"), "generate", "--path", "openapi.json",
        "--output-path", "generated", "--overwrite", "--meta", "none", folder=folder,
    )  # fmt: skip
    generated = folder / "generated" / "api" / "open_ai_images" / "generate_v1_images_generations_post.py"
    typed = generated.is_file() and "ImagesReply" in generated.read_text(encoding="utf-8")
    return failed + (not report(typed, "openapi-python-client: typed replies"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
