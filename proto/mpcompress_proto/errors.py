"""Errors of the wire contract.

WireError (ValueError)     a message that breaks the contract; `field` names the culprit
└── CorruptUnitError       a .mpc file or payload that is damaged, truncated or extended
"""

from __future__ import annotations


class WireError(ValueError):
    """A message that breaks the contract.

    Attributes:
        message: what is wrong, for a person.
        field: the culprit as a path into the request ("tensors[0].shape", "chunk.offset"), or "".
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class CorruptUnitError(WireError):
    """A .mpc file or payload that is damaged, truncated or extended."""
