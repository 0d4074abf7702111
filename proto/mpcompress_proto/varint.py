"""Numbers as protobuf and the .mpc file write them: seven bits a byte, the lowest first, the top bit says go on."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """The bytes of a number of at least 0."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
