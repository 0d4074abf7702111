"""The client of MPCompress: feature tensors in, coded units out, and back. Needs neither torch nor the codec library.

    with CompressionClient("127.0.0.1:50051") as client:
        unit = client.compress(features, codec="klt-imgfocus-vits14-final", qp=24)
        unit.save("features.mpc")
        again = client.decompress(unit)

`AsyncCompressionClient` has the same calls for asyncio. `EdgeCodec` does the same on this device, with the extra
`edge`.
"""

from mpcompress_client.async_client import AsyncCompressionClient
from mpcompress_client.client import CompressionClient
from mpcompress_client.credentials import TlsConfig
from mpcompress_client.errors import (
    AccessDeniedError,
    CancelledError,
    CodecMismatchError,
    CodecUnavailableError,
    CorruptUnitError,
    DeadlineError,
    InvalidRequestError,
    MPCompressError,
    ResourceExhaustedError,
    ServerError,
    ServerUnavailableError,
    TargetUnreachableError,
    UnknownCodecError,
    WireError,
)
from mpcompress_client.infos import CodecInfo, QpRange, ServerLimits, TensorPort
from mpcompress_client.local import EdgeCodec
from mpcompress_client.progress import Progress
from mpcompress_client.retry import RetryPolicy
from mpcompress_proto.coded_unit import CodedUnit

__all__ = [
    "AccessDeniedError",
    "AsyncCompressionClient",
    "CancelledError",
    "CodecInfo",
    "CodecMismatchError",
    "CodecUnavailableError",
    "CodedUnit",
    "CompressionClient",
    "CorruptUnitError",
    "DeadlineError",
    "EdgeCodec",
    "InvalidRequestError",
    "MPCompressError",
    "Progress",
    "QpRange",
    "ResourceExhaustedError",
    "RetryPolicy",
    "ServerError",
    "ServerLimits",
    "ServerUnavailableError",
    "TargetUnreachableError",
    "TensorPort",
    "TlsConfig",
    "UnknownCodecError",
    "WireError",
]
