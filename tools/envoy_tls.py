"""Write docker/envoy/envoy.tls.yaml: envoy.yaml with TLS on the listeners for clients; --check only compares.

Envoy merges no configuration files, and two written by hand would drift apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docker" / "envoy"
_CLIENT_LISTENERS = ("server", "vtm-worker")
_ANCHOR = "      filter_chains:\n        - filters:\n"
_TLS = """\
      filter_chains:
        - transport_socket:
            name: envoy.transport_sockets.tls
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
              common_tls_context:
                alpn_protocols: [h2]
                tls_params: {tls_minimum_protocol_version: TLSv1_2}
                tls_certificates:
                  - certificate_chain: {filename: /etc/envoy/certs/server.pem}
                    private_key: {filename: /etc/envoy/certs/server.key}
          filters:
"""


def with_tls(plain: str) -> str:
    """The configuration with TLS.

    Raises:
        ValueError: a listener for clients is missing.
    """
    text = plain
    for name in _CLIENT_LISTENERS:
        start = text.find(f"    - name: {name}\n      address:")
        chain = text.find(_ANCHOR, start)
        if start < 0 or chain < 0:
            raise ValueError(f"envoy.yaml has no listener {name!r} with filter chains")
        text = text[:chain] + _TLS + text[chain + len(_ANCHOR) :]
    return "# Written by tools/envoy_tls.py from envoy.yaml; change that.\n" + text


def main(arguments: list[str]) -> int:
    """Write or compare."""
    target = FOLDER / "envoy.tls.yaml"
    wanted = with_tls((FOLDER / "envoy.yaml").read_text(encoding="utf-8"))
    if "--check" not in arguments:
        target.write_text(wanted, encoding="utf-8")
        return 0
    if not target.exists() or target.read_text(encoding="utf-8") != wanted:
        print(f"{target.name} is out of date: python tools/envoy_tls.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
