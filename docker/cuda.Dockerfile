# `worker` and `trainer` for NVIDIA GPUs: docker compose -f docker/compose.yaml -f docker/compose.cuda.yaml
# The `base` image: torch's wheels from PyPI bring CUDA 13.0 (cuBLAS, cuDNN, NCCL) themselves, and
# `runtime` would carry 2 GB of it a second time.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS packages
# Ubuntu 24.04 has Python 3.12; constraints.txt resolves on it too.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.12 python3.12-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3.12 -m venv /opt/glacier/venv
ENV PATH=/opt/glacier/venv/bin:$PATH
WORKDIR /build
# First: 3 GB that change only with torch.
RUN pip install torch==2.13.0
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY glacier_core glacier_core
COPY flows flows
RUN pip install --constraint constraints.txt '.[server]'

FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS base
RUN apt-get update \
    && apt-get install -y --no-install-recommends git libexpat1 python3.12 \
    && rm -rf /var/lib/apt/lists/*
ARG UID=1000
ARG GID=1000
# Ubuntu's image has a user of its own with the id 1000.
RUN { ! getent passwd ubuntu || userdel --remove ubuntu; } \
    && groupadd --gid "$GID" glacier \
    && useradd --no-log-init --uid "$UID" --gid "$GID" --create-home glacier \
    && install -d -o "$UID" -g "$GID" /dvc-remote /project /home/glacier/.prefect
COPY --from=packages /opt/glacier/venv /opt/glacier/venv
COPY docker/bin /opt/glacier/docker/bin
ENV PATH=/opt/glacier/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=true \
    DVC_NO_ANALYTICS=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER $UID:$GID
ENTRYPOINT ["/opt/glacier/docker/bin/with-secrets.sh"]
WORKDIR /project

FROM base AS worker
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "/opt/glacier/docker/bin/healthy.py", "http://127.0.0.1:8080/health"]
CMD ["prefect", "worker", "start", "--pool", "glacier", "--install-policy", "never", "--with-healthcheck"]

FROM base AS trainer
# It loads torch to look: seldom.
HEALTHCHECK --interval=10m --timeout=120s --start-period=60s --retries=3 CMD ["glacier", "doctor"]
CMD ["dvc", "repro", "evaluate"]
