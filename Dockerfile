# docker build --target cpu -t clipworks:0.1.0-cpu .          (the default target)
# docker build --target cuda -t clipworks:0.1.0-cuda .
# docker build --target milvus -t clipworks:0.1.0-milvus .    (cpu, with the client of Milvus)
# It needs BuildKit, which Docker has used by itself since version 23. amd64 and arm64: docs/deploy.md has the sizes and the labels.
# No image holds torch, a compiler, pip or uv; all run as a user without rights, on a read-only root if asked.

ARG VERSION=0.1.0

FROM python:3.13.12-slim-trixie AS python
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

# ---- tools: the installer and the build backend, pinned by hash ----
FROM python AS tools
WORKDIR /src
ENV UV_LINK_MODE=copy \
    UV_HTTP_TIMEOUT=180
COPY requirements/build.txt requirements/
RUN python -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
ENV PATH=/opt/tools/bin:$PATH

# ---- wheel: clipworks itself ----
FROM tools AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY clipworks clipworks
COPY evaluation evaluation
COPY model_store model_store
COPY service service
COPY training training
RUN hatchling build -t wheel -d /wheels

# ---- environments: dependencies first, so that a change of source reuses that layer ----
FROM tools AS environment-cpu
COPY requirements/serve.txt requirements/otel.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    uv venv --python /usr/local/bin/python3 /opt/clipworks \
    && uv pip install --python /opt/clipworks --compile-bytecode --require-hashes -r requirements/serve.txt -r requirements/otel.txt
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    uv pip install --python /opt/clipworks --compile-bytecode --no-deps /wheels/*.whl

FROM environment-cpu AS environment-milvus
COPY requirements/milvus.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --python /opt/clipworks --compile-bytecode --require-hashes -r requirements/milvus.txt

FROM tools AS environment-cuda
COPY requirements/serve-gpu.txt requirements/otel.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    uv venv --python /usr/local/bin/python3 /opt/clipworks \
    && uv pip install --python /opt/clipworks --compile-bytecode --require-hashes -r requirements/serve-gpu.txt -r requirements/otel.txt
RUN --mount=from=wheel,source=/wheels,target=/wheels \
    uv pip install --python /opt/clipworks --compile-bytecode --no-deps /wheels/*.whl

# ---- runtime: what all images share ----
FROM python AS runtime
RUN groupadd --gid 10001 clipworks \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin clipworks \
    && install -d -o clipworks -g clipworks -m 0750 /var/lib/clipworks /var/lib/clipworks/artifacts /var/lib/clipworks/collections \
    && install -d /photos
ENV PATH=/opt/clipworks/bin:$PATH \
    CLIPWORKS_HOST=0.0.0.0 \
    CLIPWORKS_PORT=8000 \
    CLIPWORKS_STORE=/var/lib/clipworks/artifacts \
    CLIPWORKS_DATA=/var/lib/clipworks/collections \
    HF_HOME=/var/lib/clipworks/artifacts/.hub \
    ORT_DISABLE_TELEMETRY=1
WORKDIR /var/lib/clipworks
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# The first start of a model that is pulled (CLIPWORKS_MODEL=hub:...) is as long as its download.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["clipworks"]
# Flags win over variables: no CLIPWORKS_PORT moves the port away from the one that is published.
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
LABEL org.opencontainers.image.title="clipworks" \
      org.opencontainers.image.description="CLIP models over HTTP: vectors of images and texts, zero-shot classification, collections" \
      org.opencontainers.image.licenses="Apache-2.0"

# ---- cuda: the CUDA 13 and cuDNN 9 libraries are pip wheels, so the host brings only the driver ----
FROM runtime AS cuda
COPY --from=environment-cuda /opt/clipworks /opt/clipworks
ENV CLIPWORKS_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/opt/clipworks/lib/python3.13/site-packages/nvidia/cu13/lib:/opt/clipworks/lib/python3.13/site-packages/nvidia/cudnn/lib
# Here and not in `runtime`: what changes with every build comes last, so that the layers before it are reused.
ARG VERSION
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"

# ---- milvus: for collections that several servers share ----
FROM runtime AS milvus
COPY --from=environment-milvus /opt/clipworks /opt/clipworks
ENV CLIPWORKS_DEVICE=cpu
ARG VERSION
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"

# ---- cpu: last, so it is what a build without --target makes ----
FROM runtime AS cpu
COPY --from=environment-cpu /opt/clipworks /opt/clipworks
ENV CLIPWORKS_DEVICE=cpu
ARG VERSION
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
