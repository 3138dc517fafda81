# CPU: docker build -t magic-canvas .
# NVIDIA GPU: docker build -t magic-canvas --build-arg DEVICE=cuda .
# Start: docker run -p 7860:7860 -v canvas:/data -e CANVAS_AUTH=USER:PASSWORD magic-canvas
# Another base image: --build-arg PYTHON_IMAGE=python:3.12-slim-bookworm (the newest one)

# For all platforms, Python 3.12.14; `docker buildx imagetools inspect` shows the digest of a tag
ARG PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254
FROM ${PYTHON_IMAGE}

# cpu or cuda: the build of torch
ARG DEVICE=cpu

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CANVAS_HOST=0.0.0.0 \
    CANVAS_PORT=7860 \
    CANVAS_DATA_DIR=/data \
    CANVAS_CACHE_DIR=/data/.canvas \
    HF_HOME=/data/.huggingface

RUN useradd --create-home --uid 1000 canvas \
    && install --directory --owner=canvas --group=canvas /data

WORKDIR /app

# The CPU build of torch has its own index, whose files have other hashes: PyPI's wheels depend on
# 3 GB of CUDA libraries. All other packages are verified.
COPY requirements.lock ./
RUN if [ "$DEVICE" = "cpu" ]; then \
        pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu \
            "$(grep --only-matching '^torch==[0-9.]*' requirements.lock)" \
        && sed --in-place --regexp-extended '/^(torch|triton|nvidia-|cuda-)/,/[^\\]$/d' requirements.lock; \
    elif [ "$DEVICE" != "cuda" ]; then \
        echo "DEVICE must be cpu or cuda (got $DEVICE)" >&2; exit 1; \
    fi \
    && pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock \
    && pip check

COPY LICENSE README.md app.py ./
COPY assets ./assets
COPY canvas ./canvas

USER 1000
VOLUME /data
EXPOSE 7860

# The first import of torch is slow
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"CANVAS_PORT\"]}/healthz', timeout=8)"]

CMD ["python", "app.py"]
