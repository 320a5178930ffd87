# The service and its models: docker build -t hourglass . (or make image); with DEVICE=gpu for NVIDIA GPUs.
# EXTRAS="s3" (or gcs, both) adds what reads models from object storage.
# The GPU build brings CUDA and cuDNN as Python packages: all it needs of its host is the driver.

FROM python:3.11-slim-bookworm AS build
ARG DEVICE=cpu
ARG EXTRAS=""
WORKDIR /build
COPY pyproject.toml constraints.txt ./
# What pyproject.toml says the service needs, traces among it (4 MB), and no more: the service itself runs from its sources.
RUN case "$DEVICE" in cpu|gpu) ;; *) echo "DEVICE: must be cpu or gpu; got $DEVICE" >&2; exit 1 ;; esac && \
    python -c "import sys, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = ' '.join([*sys.argv[1:], 'otel']).split(); \
needs = project['dependencies'] + [need for extra in extras for need in project['optional-dependencies'][extra]]; \
print(*(need for need in needs if not need.startswith('hourglass-client')), sep='\n')" "$DEVICE" "$EXTRAS" > requirements.txt
# A secret pip-config is a pip.conf of one's own, for another index; nothing of it stays in the image.
RUN --mount=type=secret,id=pip-config,target=/etc/pip.conf \
    python -m venv --without-pip /opt/venv && \
    pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
# The inventory of what was installed, made by a tool that is not in it; one that is wrong ends the build.
COPY deploy/inventory.py ./
RUN --mount=type=secret,id=pip-config,target=/etc/pip.conf \
    python -m venv /tools && /tools/bin/pip install --no-cache-dir --constraint constraints.txt cyclonedx-bom && \
    mkdir -p /opt/venv/share/sbom && \
    /tools/bin/cyclonedx-py environment /opt/venv/bin/python --pyproject pyproject.toml --mc-type application \
        --output-reproducible --output-format JSON --output-file /opt/venv/share/sbom/hourglass.cdx.json && \
    /opt/venv/bin/python inventory.py /opt/venv/share/sbom/hourglass.cdx.json
COPY service /app/service
COPY proto /app/proto
COPY models /models
# Readable for every user, whatever the umask of the checkout.
RUN python -m compileall -q --invalidation-mode unchecked-hash /app && chmod -R a+rX /app /models

FROM python:3.11-slim-bookworm
ARG DEVICE=cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Hourglass" \
      org.opencontainers.image.description="Serves trained autoencoders over gRPC ($DEVICE)" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app/proto \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HOURGLASS_HOST=0.0.0.0 \
    HOURGLASS_MODELS=/models \
    HOURGLASS_LOG_FORMAT=json
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# A folder mounted at /models takes the place of these.
COPY --from=build /models /models
WORKDIR /app
# A number, so that Kubernetes can see that it is not root. Nothing in the image belongs to it.
USER 65532:65532
# gRPC; /metrics, /healthz and /readyz
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "service.healthcheck"]
ENTRYPOINT ["python", "-m", "service"]
