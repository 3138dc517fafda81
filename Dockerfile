# CPU: docker build -t magic-canvas .
# NVIDIA GPU: docker build -t magic-canvas --build-arg DEVICE=cuda .
FROM python:3.12-slim-bookworm

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

# The CPU build of torch has its own index: PyPI's wheels depend on 3 GB of CUDA libraries
COPY requirements.txt ./
RUN if [ "$DEVICE" = "cpu" ]; then \
        sed -n '/^torch/p' requirements.txt > torch.txt \
        && pip install --no-cache-dir -r torch.txt --index-url https://download.pytorch.org/whl/cpu \
        && rm torch.txt; \
    elif [ "$DEVICE" != "cuda" ]; then \
        echo "DEVICE must be cpu or cuda (got $DEVICE)" >&2; exit 1; \
    fi \
    && pip install --no-cache-dir -r requirements.txt

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
