"""Check what `docker compose up` reads: Dockerfiles, compose files, Envoy, Prometheus, the dashboard, Kubernetes.

Tools come from the extra [stack]; promtool (Debian: prometheus) and kustomize or kubectl are used when installed and
said to be skipped when not.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
_CERTS = "/etc/envoy/certs"


def main() -> int:
    """Run every check; 1 when one fails."""
    failed = [name for name, problem in checks() if problem and not _report(name, problem)]
    return 1 if failed else 0


def checks() -> Iterator[tuple[str, str]]:
    """Name and problem of each check; no problem is "", a check that cannot run starts with "skipped"."""
    yield "hadolint", _tool("hadolint", *_files("**/*.Dockerfile"))
    compose = _files("docker-compose*.yml")
    yield "compose-spec", _tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *compose)
    for script in ("envoy_tls.py", "write_dashboard.py"):
        yield script, _run([sys.executable, str(ROOT / "tools" / script), "--check"])
    yield "envoy", _tool("envoy", "--mode", "validate", "-c", "docker/envoy/envoy.yaml")
    yield "envoy tls", _envoy_tls()
    yield "promtool", _tool("promtool", "check", "config", "docker/prometheus/prometheus.yml")
    yield "promtool rules", _tool("promtool", "test", "rules", "docker/prometheus/tests.yml")
    yield "metric names", _metric_names()
    yield "variables", _variables(compose)
    yield "limits", _limits()
    yield "kustomize", _kustomize()


def _files(pattern: str) -> list[str]:
    found = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if ".venv" not in path.parts[:-1])
    if not found:
        raise FileNotFoundError(pattern)
    return found


def _tool(name: str, *arguments: str) -> str:
    """Prefers the environment that runs this script over the PATH."""
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return _run([program, *arguments]) if program else f"skipped: {name} is not installed"


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return "" if done.returncode == 0 else f"{done.stdout}{done.stderr}"[-4000:]


def _envoy_tls() -> str:
    """Envoy reads certificates when it validates, so it gets some of its own."""
    try:
        import trustme
    except ImportError:
        return "skipped: trustme is not installed"
    with tempfile.TemporaryDirectory() as folder:
        certificate = trustme.CA().issue_cert("localhost")
        certificate.cert_chain_pems[0].write_to_path(f"{folder}/server.pem")
        certificate.private_key_pem.write_to_path(f"{folder}/server.key")
        config = Path(folder) / "envoy.yaml"
        config.write_text((ROOT / "docker/envoy/envoy.tls.yaml").read_text().replace(_CERTS, folder))
        return _tool("envoy", "--mode", "validate", "-c", str(config))


def _variables(compose: list[str]) -> str:
    """Every variable of the compose files is in .env.example with its default, and the other way round."""
    used: dict[str, str] = {}
    for file in sorted(compose, key=len):  # the defaults of docker-compose.yml go before those of its overrides
        for name, default in re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", (ROOT / file).read_text()):
            used.setdefault(name, default)
    documented = dict(re.findall(r"(?m)^#([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text()))
    differing = sorted({name for name, _ in used.items() ^ documented.items()})
    return f"not the same in .env.example and compose files: {differing}" if differing else ""


def _limits() -> str:
    """Every service has limits."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    limits = {
        name: service.get("deploy", {}).get("resources", {}).get("limits", {}) for name, service in services.items()
    }
    without = sorted(name for name, limit in limits.items() if not limit.get("cpus") or not limit.get("memory"))
    return f"no limit of CPUs and memory: {without}" if without else ""


def _metric_names() -> str:
    """Rules, alerts and panels ask for metrics of docs/metrics.md and for what the rules record, and for all of it."""
    rules = "".join((ROOT / "docker/prometheus" / name).read_text() for name in ("recording.yml", "alerts.yml"))
    panels = (ROOT / "docker/grafana/dashboards/mpcompress.json").read_text()
    recorded = set(re.findall(r"record: (\S+)", rules))
    asked = set(re.findall(r"[a-z_]+:mpcompress_\w+:\w+", re.sub(r"record: \S+", "", rules) + panels))
    if recorded != asked:
        return f"not both recorded and used: {sorted(recorded ^ asked)}"
    known = set(re.findall(r"`(mpcompress_\w+)`", (ROOT / "docs/metrics.md").read_text()))
    used = set(re.findall(r"(?<![:\w])mpcompress_[a-z_]+", rules + panels))
    unknown = {name for name in used if re.sub("_(bucket|sum|count)$", "", name) not in known}
    return f"not in docs/metrics.md: {sorted(unknown)}" if unknown else ""


def _kustomize() -> str:
    """What the base becomes, against the schemas of Kubernetes; no cluster is asked."""
    builder = {"kustomize": ["kustomize", "build"], "kubectl": ["kubectl", "kustomize"]}
    command = next((command for name, command in builder.items() if shutil.which(name)), None)
    if command is None:
        return "skipped: neither kustomize nor kubectl is installed"
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "base.yaml"
        return _run([*command, "deploy/base", "-o", str(whole)]) or _tool("kubernetes-validate", "--strict", str(whole))


def _report(name: str, problem: str) -> bool:
    """Prints; whether it is no failure."""
    print(f"{name}: {problem.strip()}")
    return problem.startswith("skipped")


if __name__ == "__main__":
    sys.exit(main())
