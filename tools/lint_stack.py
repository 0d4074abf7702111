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
    yield "variables", _variables(compose)
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
    """Every variable of the compose files is in .env.example, and the other way round."""
    used = {name for file in compose for name in re.findall(r"\$\{([A-Z_]+)", (ROOT / file).read_text())}
    documented = set(re.findall(r"(?m)^#([A-Z_]+)=", (ROOT / ".env.example").read_text()))
    return "" if used == documented else f"not in both .env.example and compose files: {sorted(used ^ documented)}"


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
