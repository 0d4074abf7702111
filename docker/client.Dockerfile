# syntax=docker/dockerfile:1
# The client and its command line: no torch, no numba. `docker run IMAGE codecs --target HOST:PORT`
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
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
# dependencies and, in ml_dtypes, 23 MB of symbols.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python -m venv --without-pip /opt/mpcompress \
 && PIP_CONSTRAINT=constraints.txt python -m pip --python /opt/mpcompress install --no-cache-dir . \
 && find /opt/mpcompress -depth -type d -name tests -exec rm -r {} + \
 && strip --strip-unneeded /opt/mpcompress/lib/python3*/site-packages/ml_dtypes/*.so

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin mpcompress
COPY --from=build /opt/mpcompress /opt/mpcompress
ENV PATH=/opt/mpcompress/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["mpcompress"]
CMD ["--help"]
