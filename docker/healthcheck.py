"""Exit 0 when the server of this container says SERVING, by grpc.health.v1; else 1 and one line that says why.

With TLS set MPCOMPRESS_HEALTH_CA (PEM of the authority) and, when the certificate is not for "localhost",
MPCOMPRESS_HEALTH_NAME; under mutual TLS also MPCOMPRESS_HEALTH_CERT and MPCOMPRESS_HEALTH_KEY.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT_S = 3.0


def main() -> int:
    """Ask once."""
    target = os.environ.get("MPCOMPRESS_HEALTH_TARGET", "localhost:50051")
    try:
        with _channel(target) as channel:
            request = health_pb2.HealthCheckRequest(service="")
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=_TIMEOUT_S).status
    except (grpc.RpcError, OSError) as error:
        return _unhealthy(f"{target}: {error.details() if isinstance(error, grpc.Call) else error}")
    if status != health_pb2.HealthCheckResponse.SERVING:
        return _unhealthy(f"{target}: {health_pb2.HealthCheckResponse.ServingStatus.Name(status)}")
    return 0


def _channel(target: str) -> grpc.Channel:
    authority, cert, key = (_pem(f"MPCOMPRESS_HEALTH_{name}") for name in ("CA", "CERT", "KEY"))
    if authority is None:
        return grpc.insecure_channel(target)
    name = os.environ.get("MPCOMPRESS_HEALTH_NAME")
    options = [("grpc.ssl_target_name_override", name)] if name else []
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(authority, key, cert), options=options)


def _pem(variable: str) -> bytes | None:
    path = os.environ.get(variable)
    return Path(path).read_bytes() if path else None


def _unhealthy(reason: str) -> int:
    sys.stderr.write(f"unhealthy: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
