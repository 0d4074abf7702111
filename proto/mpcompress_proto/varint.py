"""Numbers as protobuf and the .mpc file write them: seven bits a byte, the lowest first, the top bit says go on."""

from __future__ import annotations


def varint(value: int, longer: int = 0) -> bytes:
    """The bytes of a number of at least 0, as few as it needs or some more."""
    if value < 0x80 and not longer:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value | 0x80 if longer else value)
    if longer:
        out.extend(bytes((0x80,)) * (longer - 1))
        out.append(0)
    return bytes(out)
