"""Errors of the wire contract.

    MPCompressError                root of everything that the contract and the client raise
    └── WireError (ValueError)     a message that breaks the contract; `field` names the culprit
        └── CorruptUnitError       a .mpc file or payload that is damaged, truncated or extended

The client's tree (mpcompress_client/errors.py) grows from the same root.
"""

from __future__ import annotations


class MPCompressError(Exception):
    """Root of the tree.

    Attributes:
        message: what is wrong, for a person.
        field: the culprit as a path into the request ("tensors[0].shape", "chunk.offset"), or "".
        reason: the stable reason of the server's ErrorInfo, or "" for errors found on this side.
        request_id: what a server's operator needs to find the request in its logs, or "".
    """

    reason: str = ""
    request_id: str = ""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class WireError(MPCompressError, ValueError):
    """A message that breaks the contract."""


class CorruptUnitError(WireError):
    """A .mpc file or payload that is damaged, truncated or extended."""
