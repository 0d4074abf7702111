"""The images of `make images`, each looked at alone."""

from __future__ import annotations

import pytest

from tests.stack.composed import ROOT, Stack

CLIENT = "mpcompress-client:latest"
SERVERS = ("mpcompress-server:latest", "mpcompress-vtm-worker:latest")
# Names of the kernels that are compiled when all are asked for.
_COMPILED = """
from numba.core import event
from mpcompress._numba import warm_up
with event.install_recorder("numba:compile") as compiled:
    warm_up()
print([found.data["dispatcher"].__name__ for _, found in compiled.buffer])
"""
_INSTALLED = """
from importlib.metadata import distributions
for found in distributions(path=[path for path in __import__("sys").path if path.startswith("/opt/mpcompress")]):
    print(found.name.lower().replace("_", "-") + "==" + found.version)
"""


@pytest.fixture(scope="module")
def stack() -> Stack:
    """Only its commands are used; nothing is started."""
    return Stack.make()


def _run(stack: Stack, image: str, *command: str) -> str:
    """As it is run: nothing writable, nobody's root; and without a network."""
    entrypoint, *arguments = command
    confined = ("--rm", "--read-only", "--network", "none", "--cap-drop", "ALL")
    return stack.containers("run", *confined, "--entrypoint", entrypoint, image, *arguments)


@pytest.mark.parametrize("image", [CLIENT, *SERVERS])
def test_versions_are_those_of_the_constraints(stack: Stack, image: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if "==" in line)
    installed = dict(line.split("==") for line in _run(stack, image, "python", "-c", _INSTALLED).split())
    assert {"mpcompress", "numpy", "grpcio"} <= set(installed)
    others = {name: version for name, version in installed.items() if pinned.get(name) != version.split("+")[0]}
    # compressai asks for the latter two, which build packages and code nothing.
    assert set(others) - {"setuptools", "wheel"} == {"mpcompress"}
    assert _run(stack, image, "id", "-u").strip() == "10001"


def test_the_client_is_small(stack: Stack) -> None:
    """What it adds to python:3.11-slim-bookworm, which has about 125 MB: together they stay below 250."""
    megabytes = int(_run(stack, CLIENT, "du", "-sm", "/opt/mpcompress").split()[0])
    assert megabytes < 118
    assert not {"torch", "numba"} & {
        line.split("==")[0] for line in _run(stack, CLIENT, "python", "-c", _INSTALLED).split()
    }


@pytest.mark.parametrize("image", SERVERS)
def test_a_server_compiles_nothing(stack: Stack, image: str) -> None:
    assert _run(stack, image, "python", "-c", _COMPILED).strip() == "[]"


@pytest.mark.parametrize("image", SERVERS)
def test_health_and_stopping_are_declared(stack: Stack, image: str) -> None:
    """Docker's format; BuildKit's default keeps a HEALTHCHECK, podman needs `--format docker`."""
    found = stack.inspect(image)
    config = found["Config"]
    check = config.get("Healthcheck") or found["Healthcheck"]  # docker, podman
    assert check["Test"] == ["CMD", "python", "/opt/mpcompress/healthcheck.py"]
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert config["User"] == "10001:10001"
