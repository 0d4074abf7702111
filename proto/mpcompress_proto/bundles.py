"""Messages that travel together, as one: for small items most of the time goes into each message, not into its bytes.

A message is taken into a bundle when it is ready as the one before it has left; nothing waits for company. Both sides
must have said that they read bundles: the client in the metadata of its call, the server in its initial metadata.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from mpcompress_proto.tensors import MAX_INLINE_BYTES

MAX_BUNDLE = 64
"""Most messages in a bundle."""

KEY = "x-mpcompress-bundles"
METADATA = ((KEY, str(MAX_BUNDLE)),)
"""What says that its sender reads bundles."""

MAX_BUNDLE_BYTES = MAX_INLINE_BYTES
"""Most bytes of tensors and payloads in a bundle that is sent; as much as a message without a bundle has."""

_DIGITS = 6
# Long enough for a megabyte over a fast line. On a slow one messages go one by one, each as soon as it can.
_MOMENT_S = 0.01


def accepted(metadata: Iterable[tuple[str, str | bytes]] | None) -> int:
    """The most messages in a bundle that the sender of some metadata reads; 1 for none."""
    said = next((value for key, value in metadata or () if key == KEY), "")
    known = isinstance(said, str) and said.isascii() and said.isdigit() and len(said) <= _DIGITS
    return max(1, min(MAX_BUNDLE, int(said))) if known else 1


class Pace:
    """How many bytes may travel together, from how long the last message took.

    Args:
        clock: seconds, monotonic.

    Attributes:
        room: most bytes of a bundle that leaves now; 0 as long as that is not known.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bytes = 0
        self._since = 0.0
        self.room = 0

    def leaves(self, nbytes: int) -> None:
        """A message is handed to gRPC."""
        self._bytes, self._since = nbytes, self._clock()

    def left(self) -> None:
        """The last is on its way: gRPC takes the next one."""
        took_s = self._clock() - self._since
        self.room = MAX_BUNDLE_BYTES if took_s <= 0 else min(MAX_BUNDLE_BYTES, int(self._bytes * _MOMENT_S / took_s))
