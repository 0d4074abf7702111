"""Where the messages of streams get their memory."""

from __future__ import annotations

from functools import cache

# Twice the largest message of a client.
_BYTES = 2 << 20


@cache
def keep_messages_on_the_heap() -> None:
    """Has glibc take blocks as large as a message from the heap; elsewhere it does nothing.

    At first each is a mapping of its own, which is made, filled page by page and given back for every message: a third
    of what sending takes. Once a larger one has been freed, those below it are not, and twice as much stays free at the
    heap's top (`man mallopt`, M_MMAP_THRESHOLD): 4 MiB. Nothing is written into this one, so it takes no memory.
    """
    bytes(_BYTES)
