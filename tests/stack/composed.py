"""The stack of docker-compose.yml under a project name and ports of its own, by whatever runs compose files here."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "mpcompress-stack-test"
SERVICES = ("server", "vtm-worker", "envoy", "prometheus", "grafana")
_PORTS = ("MPCOMPRESS_PORT", "MPCOMPRESS_VTM_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
_PAUSE_S = 0.5
# On a busy machine podman 4.3 now and then does not notice that a command it executed has ended.
_EXEC_S, _EXEC_TRIES = 30, 3
_SCRAPE = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9464/metrics').read().decode())"


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack that `up` started.

    Environment: COMPOSE ("docker compose") and CONTAINERS ("docker") are the commands; STACK_SERVICES names the
    services to start, for machines without the images of all.
    """

    environment: dict[str, str]
    services: tuple[str, ...]
    files: tuple[str, ...] = ("docker-compose.yml",)

    @classmethod
    def make(cls, *overrides: str, without: tuple[str, ...] = (), **variables: str) -> Stack:
        """Choose free ports. Overrides are compose files on top of docker-compose.yml."""
        ports = {name: str(_free_port()) for name in _PORTS}
        services = tuple(os.environ.get("STACK_SERVICES", "").split()) or SERVICES
        return cls(
            environment={**os.environ, **ports, **variables},
            services=tuple(service for service in services if service not in without),
            files=("docker-compose.yml", *overrides),
        )

    def port(self, variable: str) -> int:
        """Where a service listens on this machine."""
        return int(self.environment[variable])

    def compose(self, *arguments: str, timeout_s: float = 300) -> str:
        """Runs a compose command on the stack."""
        files = [word for file in self.files for word in ("-f", file)]
        command = [*shlex.split(os.environ.get("COMPOSE", "docker compose")), *files, "-p", PROJECT, *arguments]
        return self._run(command, timeout_s)

    def down(self) -> None:
        """Removes everything; podman-compose alone would leave the replicas of scaled services."""
        self.compose("down", "-v")
        left = [container for service in self.services for container in self.ids(service, all_of_them=True)]
        for container in left:
            self.containers("rm", "-f", container)
        if left:
            self.compose("down", "-v")

    def containers(self, *arguments: str, timeout_s: float = 120) -> str:
        """Runs docker, or what stands for it."""
        return self._run([*shlex.split(os.environ.get("CONTAINERS", "docker")), *arguments], timeout_s)

    def ids(self, service: str, all_of_them: bool = False) -> list[str]:
        """Containers of a service: those that run, or all."""
        labels = (f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}")
        which = ("-a",) if all_of_them else ()
        found = self.containers(
            "ps", "-q", *which, *(word for label in labels for word in ("--filter", f"label={label}"))
        )
        return sorted(found.split())

    def inspect(self, what: str) -> dict[str, Any]:
        """What the container or image is."""
        found: list[dict[str, Any]] = json.loads(self.containers("inspect", what))
        return found[0]

    def healthy(self, container: str) -> bool:
        """Whether a server says SERVING, by the command of its image's HEALTHCHECK."""
        test = self.inspect(container)["Config"]["Healthcheck"]["Test"]
        assert test[0] == "CMD"
        return self.succeeds("exec", container, *test[1:])

    def succeeds(self, *arguments: str) -> bool:
        """Whether docker, or what stands for it, ends with 0, and soon."""
        try:
            self.containers(*arguments, timeout_s=_EXEC_S)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return False
        return True

    def metric(self, container: str, name: str) -> float:
        """What a server itself says now, without labels; Prometheus asks every few seconds only."""
        for attempt in range(_EXEC_TRIES):
            try:
                text = self.containers("exec", container, "python", "-c", _SCRAPE, timeout_s=_EXEC_S)
                break
            except subprocess.TimeoutExpired:
                if attempt == _EXEC_TRIES - 1:
                    raise
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus finds for an expression now."""
        query = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{self.port('PROMETHEUS_PORT')}/api/v1/query?{query}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """The sum of what an expression gives."""
        return sum(float(sample["value"][1]) for sample in self.query(expression))

    def _run(self, command: list[str], timeout_s: float) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout


def eventually(true: Callable[[], bool], what: str, limit_s: float = 120) -> None:
    """Asks until it is so. Containers and scrapes of other processes have nothing to wait on but their answers."""
    end = time.monotonic() + limit_s
    last: Exception | None = None
    while time.monotonic() < end:
        try:
            if true():
                return
            last = None
        except (OSError, ValueError) as error:
            last = error
        time.sleep(_PAUSE_S)
    raise AssertionError(f"not within {limit_s:g} s: {what}") from last


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
