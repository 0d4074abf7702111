"""docker-compose.tls.yml, used for real: TLS up to Envoy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme

from mpcompress_client import CompressionClient, ServerUnavailableError, TlsConfig
from tests.stack.composed import ROOT, Stack, eventually

FEATURES = np.load(ROOT / "tests/data/features_final.npy")[0]
KLT = "klt-imgfocus-vits14-final"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Readable by the user of the containers, as MPCOMPRESS_CERTS has to be."""
    folder = tmp_path_factory.mktemp("certs")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "envoy")
    certificate.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "server.key"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def stack(certificates: Path) -> Iterator[Stack]:
    stack = Stack.make(
        "docker-compose.tls.yml",
        without=("prometheus", "grafana"),
        MPCOMPRESS_CERTS=str(certificates),
        DEMO_SECONDS="3",
    )
    stack.down()
    try:
        stack.compose("up", "-d", *stack.services)
        eventually(lambda: all(map(stack.healthy, (*stack.ids("server"), *stack.ids("vtm-worker")))), "all serve")
        yield stack
    finally:
        stack.down()


@pytest.mark.parametrize(
    ("variable", "codec"), [("MPCOMPRESS_PORT", KLT), ("MPCOMPRESS_VTM_PORT", "x265-dinov2-cls-tiles")]
)
def test_round_trip(stack: Stack, certificates: Path, variable: str, codec: str) -> None:
    target = f"localhost:{stack.port(variable)}"
    with CompressionClient(target, tls=TlsConfig(ca=certificates / "ca.pem"), timeout_s=120) as client:
        again = client.decompress(client.compress(FEATURES, codec=codec, qp=24))
    assert again.shape == FEATURES.shape


def test_plain_text_and_strangers_are_refused(stack: Stack, certificates: Path) -> None:
    target = f"localhost:{stack.port('MPCOMPRESS_PORT')}"
    stranger = trustme.CA().cert_pem.bytes()
    for tls in (None, TlsConfig(ca=stranger)):
        with CompressionClient(target, tls=tls, timeout_s=5) as client, pytest.raises(ServerUnavailableError):
            client.compress(FEATURES, codec=KLT, qp=24)


def test_the_demo_trusts_the_authority(stack: Stack) -> None:
    said = stack.compose("--profile", "demo", "run", "--rm", "--no-deps", "demo")
    assert KLT in said
