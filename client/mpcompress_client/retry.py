"""What is sent again, how often and when. Does no input or output.

Coding is pure: an item that was sent twice has the same result twice, so that whatever was not answered may be sent
again. Three layers, from the inside out:

    gRPC's service config    ListCodecs or GetCodecFile without any answer, UNAVAILABLE: the channel repeats the call
    an item's own error      RetryInfo (no room, a crashed worker, draining): the item is sent again after its delay
    a stream that breaks     every item that it did not answer goes over the next stream
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from mpcompress_client.errors import (
    InvalidRequestError,
    MPCompressError,
    ResourceExhaustedError,
    ServerUnavailableError,
)

_LEAST_ATTEMPTS, _MOST_ATTEMPTS = 1, 100
_LONGEST_S = 1e6
# gRPC itself takes at most 5.
_CALL_ATTEMPTS = 3
_CALLS = ("ListCodecs", "GetCodecFile")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How persistent a client is. No item outlives its time limit, whatever is said here.

    Args:
        attempts: how often an item is sent in all; 1 sends nothing again. Also how often a server that never answered
            is called.
        initial_backoff_s: pause before the second attempt, seconds; each pause is shortened by up to half, at random.
        max_backoff_s: longest pause, seconds.
        multiplier: how much longer each pause is than the one before.
        reconnect_s: how long a server that has answered this client before is waited for when it is gone, seconds.

    Raises:
        InvalidRequestError: naming the argument.
    """

    attempts: int = 5
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    multiplier: float = 2.0
    reconnect_s: float = 30.0

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or not _LEAST_ATTEMPTS <= self.attempts <= _MOST_ATTEMPTS:
            raise InvalidRequestError(
                f"attempts is {_LEAST_ATTEMPTS} to {_MOST_ATTEMPTS}, not {self.attempts!r}", field="retry.attempts"
            )
        for name in ("initial_backoff_s", "max_backoff_s", "reconnect_s"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= _LONGEST_S:
                raise InvalidRequestError(f"{name} is 0 to 1e6 seconds, not {value!r}", field=f"retry.{name}")
        if not isinstance(self.multiplier, int | float) or not 1 <= self.multiplier <= 100:
            raise InvalidRequestError(f"multiplier is 1 to 100, not {self.multiplier!r}", field="retry.multiplier")

    @property
    def on(self) -> bool:
        """Whether anything is sent again."""
        return self.attempts > 1

    def delay_s(self, failures: int, error: MPCompressError | None = None) -> float:
        """The pause after this many failures: grows, is random, and never shorter than the server asked for."""
        base = min(self.max_backoff_s, self.initial_backoff_s * self.multiplier ** (failures - 1))
        asked = getattr(error, "retry_after_s", None) or 0.0
        # The random part goes on top of what the server asked for: all its clients heard the same number.
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 # no secret
        return float(asked + base * jitter if asked else base * jitter)


NEVER = RetryPolicy(attempts=1)


def policy_of(retry: RetryPolicy | None) -> RetryPolicy:
    """The policy; None switches off. Raises InvalidRequestError for anything else."""
    if retry is None:
        return NEVER
    if not isinstance(retry, RetryPolicy):
        raise InvalidRequestError(f"retry is a RetryPolicy or None, not {retry!r}", field="retry")
    return retry


def may_succeed_later(error: MPCompressError) -> bool:
    """Whether sending the same again can help."""
    if isinstance(error, ResourceExhaustedError):
        return error.retry_after_s is not None
    return isinstance(error, ServerUnavailableError)


def service_config(policy: RetryPolicy) -> str:
    """The policy as gRPC's service config: what the channel does by itself before the first answer.

    Streams of items are left out: the channel would keep copies of what they send, and they are sent again from here.
    """
    service = "mpcompress.v1.CompressionService"
    method: dict[str, object] = {"name": [{"service": service, "method": name} for name in _CALLS]}
    if policy.on:
        method["retryPolicy"] = {
            "maxAttempts": min(policy.attempts, _CALL_ATTEMPTS),
            "initialBackoff": f"{max(policy.initial_backoff_s, 0.001):.3f}s",
            "maxBackoff": f"{max(policy.max_backoff_s, 0.001):.3f}s",
            "backoffMultiplier": policy.multiplier,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
    return json.dumps({"methodConfig": [method]})


@dataclass
class Contact:
    """Whether a server has ever answered this client. One that never did is more likely a wrong address."""

    made: bool = False


@dataclass
class Breaks:
    """Breaks of the streams of one call, one after another without any answer between them."""

    policy: RetryPolicy
    contact: Contact
    count: int = 0
    since: float = field(default=0.0)

    def answered(self) -> None:
        """An answer came."""
        self.contact.made = True
        self.count = 0

    def another(self, now: float) -> bool:
        """Counts a break; False when it is time to give up."""
        if self.count == 0:
            self.since = now
        self.count += 1
        if not self.policy.on:
            return False
        if self.contact.made:
            return now - self.since <= self.policy.reconnect_s
        return self.count < self.policy.attempts
