# syntax=docker/dockerfile:1
# The server. CPU by default; for NVIDIA GPUs
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
# (those wheels bring CUDA, the driver is the host's; cu126 for GPUs older than Turing). Without learned codecs, at
# two fifths of the size:
#   --build-arg EXTRAS=server,vvc
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS=server,vvc,codecs
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Kernels are compiled here, not at start. "generic" runs on every CPU of the architecture; a fleet of one kind of
# machine may name its own, say x86-64-v3.
ARG NUMBA_CPU_NAME=generic
WORKDIR /src
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY mpcompress mpcompress
COPY proto proto
COPY server server
COPY client client
# PIP_CONSTRAINT, not -c: it also pins what the build of our own wheel needs. The secret is for those who build behind
# a proxy or a mirror; without it pip does what it always does. Left out: tests of
# dependencies, torch's C++ headers and, in ml_dtypes, 23 MB of symbols.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python -m venv --without-pip /opt/mpcompress \
 && PIP_CONSTRAINT=constraints.txt python -m pip --python /opt/mpcompress install --no-cache-dir \
      --extra-index-url "${TORCH_INDEX}" ".[${EXTRAS}]" \
 && find /opt/mpcompress -depth -type d \( -name tests -o -path '*/torch/test' -o -path '*/torch/include' \) \
      -exec rm -r {} + \
 && strip --strip-unneeded /opt/mpcompress/lib/python3*/site-packages/ml_dtypes/*.so
RUN MPCOMPRESS_CACHE_DIR=/opt/mpcompress/kernels NUMBA_CPU_NAME="${NUMBA_CPU_NAME}" \
    /opt/mpcompress/bin/python -c "from mpcompress._numba import warm_up; warm_up()"

FROM ${PYTHON_IMAGE}
ARG NUMBA_CPU_NAME=generic
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin mpcompress
COPY --from=build /opt/mpcompress /opt/mpcompress
COPY docker/healthcheck.py /opt/mpcompress/healthcheck.py
COPY docker/server.toml /etc/mpcompress/server.toml
ENV PATH=/opt/mpcompress/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MPCOMPRESS_CACHE_DIR=/opt/mpcompress/kernels NUMBA_CPU_NAME=${NUMBA_CPU_NAME}
USER 10001:10001
WORKDIR /tmp
# gRPC, Prometheus
EXPOSE 50051 9464
# SIGTERM: no new items, those under way get grace_s, then the process ends.
STOPSIGNAL SIGTERM
# A check costs 0.4 CPU seconds, which is mostly the start of Python.
HEALTHCHECK --interval=10s --timeout=8s --start-period=90s --retries=3 CMD ["python", "/opt/mpcompress/healthcheck.py"]
ENTRYPOINT ["mpcompress-server"]
CMD ["serve", "--config", "/etc/mpcompress/server.toml", "--log-format", "json"]
