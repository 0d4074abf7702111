"""What is sent again, how often and when: the policy, and the books with a clock of their own. No server."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mpcompress_client import (
    DeadlineError,
    InvalidRequestError,
    ResourceExhaustedError,
    RetryPolicy,
    ServerError,
    ServerUnavailableError,
)
from mpcompress_client.items import CompressItem
from mpcompress_client.ledger import GRACE_S, Ledger
from mpcompress_client.retry import NEVER, Contact, service_config
from mpcompress_proto.parcel import Parcel
from mpcompress_proto.v1 import compression_pb2 as pb

QUICK = RetryPolicy(attempts=3, initial_backoff_s=0.001, max_backoff_s=0.01)


# ------------------------------------------------------------------------------------------------------ the policy


def test_pauses_grow_are_bounded_and_random():
    policy = RetryPolicy(initial_backoff_s=1.0, multiplier=3.0, max_backoff_s=10.0)
    for failures, longest in ((1, 1.0), (2, 3.0), (3, 9.0), (4, 10.0), (50, 10.0)):
        pauses = [policy.delay_s(failures) for _ in range(50)]
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(set(pauses)) > 1


def test_a_pause_is_never_shorter_than_the_server_asked_for():
    error = ResourceExhaustedError("full")
    error.retry_after_s = 7.0
    assert all(7.0 < QUICK.delay_s(1, error) < 7.1 for _ in range(20))


@pytest.mark.parametrize(
    "arguments",
    [
        {"attempts": 0},
        {"attempts": 1.5},
        {"attempts": 1000},
        {"multiplier": 0.5},
        {"reconnect_s": -1},
        {"max_backoff_s": float("nan")},
        {"initial_backoff_s": "1"},
    ],
)
def test_policies_that_cannot_be(arguments):
    with pytest.raises(InvalidRequestError, match=next(iter(arguments))):
        RetryPolicy(**arguments)


def test_the_service_config_is_what_grpc_reads():
    (method,) = json.loads(service_config(RetryPolicy()))["methodConfig"]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert method["retryPolicy"]["maxAttempts"] == 3
    assert [name["method"] for name in method["name"]] == ["ListCodecs", "GetCodecFile"]
    assert "retryPolicy" not in json.loads(service_config(NEVER))["methodConfig"][0]


# ------------------------------------------------------------------------------------------------------- the books


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def books(**arguments) -> tuple[Ledger, Clock]:
    clock = Clock()
    defaults = {"look_ahead": 4, "look_ahead_bytes": 1 << 20, "ordered": True, "policy": QUICK, "contact": Contact()}
    return Ledger(target="host:1", clock=clock, **{**defaults, **arguments}), clock


def item(timeout_s: float = 60.0) -> CompressItem:
    return CompressItem({"h": np.ones(4, np.int32)}, codec_id="x", params=pb.CodingParams(), timeout_s=timeout_s)


def unavailable(retry_after_s: float | None = None) -> ServerUnavailableError:
    error = ServerUnavailableError("gone")
    error.retry_after_s = retry_after_s
    return error


def test_the_time_limit_covers_all_attempts():
    ledger, clock = books(policy=RetryPolicy(attempts=10, max_backoff_s=0.0))
    ledger.admit(item(timeout_s=10.0))
    [(slot, left_s)] = ledger.next_to_send()
    assert left_s == 10.0
    clock.now += 4
    ledger.settle(slot, unavailable())
    assert ledger.next_to_send() == [(slot, 6.0)]
    clock.now += 5
    ledger.settle(slot, unavailable())
    clock.now += 2
    assert not ledger.next_to_send()
    assert isinstance(ledger.pop().outcome, ServerUnavailableError)


@pytest.mark.parametrize(("places", "again"), [(1, 0), (2, 1), (5, 4), (16, 12)])
def test_a_full_window_takes_several_more_at_once(places, again):
    ledger, _ = books(look_ahead=places)
    held = taken = 0
    while held < places:
        assert ledger.may_pull()
        ledger.admit(item())
        ledger.settle(ledger.next_to_send()[0][0], ServerError("no"))
        held += 1
    while held > again:
        assert not ledger.may_pull()
        assert ledger.pop().index == taken
        held, taken = held - 1, taken + 1
    assert ledger.may_pull()


def test_a_window_full_of_bytes_has_room_as_soon_as_they_are_less():
    ledger, _ = books(look_ahead_bytes=40)
    for _ in range(3):
        assert ledger.may_pull()
        ledger.admit(item())
        ledger.settle(ledger.next_to_send()[0][0], ServerError("no"))
    assert not ledger.may_pull()
    ledger.pop()
    assert ledger.may_pull()


def test_an_item_waits_as_long_as_the_server_asked_for():
    ledger, clock = books()
    ledger.admit(item())
    [(slot, _)] = ledger.next_to_send()
    ledger.settle(slot, unavailable(retry_after_s=5.0))
    assert not ledger.next_to_send()
    assert 5.0 <= ledger.next_due_s() < 5.1
    clock.now += 5.1
    assert ledger.next_to_send()[0][0] is slot


def test_no_attempt_is_made_that_would_come_too_late():
    ledger, _ = books()
    ledger.admit(item(timeout_s=3.0))
    [(slot, _)] = ledger.next_to_send()
    ledger.settle(slot, unavailable(retry_after_s=5.0))
    assert isinstance(ledger.pop().outcome, ServerUnavailableError)


def test_an_answer_that_is_late_beyond_the_grace_fails_what_is_under_way_only():
    ledger, clock = books()
    for _ in range(2):
        ledger.admit(item(timeout_s=10.0))
    ledger.next_to_send()
    clock.now += 10 + GRACE_S - 1
    assert not ledger.expire()
    assert ledger.next_deadline_s() == 1.0
    clock.now += 1
    assert ledger.expire()
    assert isinstance(ledger.pop().outcome, DeadlineError)
    assert ledger.pop() is None
    assert ledger.next_to_send()


def test_a_server_that_never_answered_is_called_a_few_times_one_that_did_for_a_while():
    for known in (False, True):
        ledger, clock = books(
            policy=RetryPolicy(attempts=3, max_backoff_s=1.0, reconnect_s=60.0), contact=Contact(known)
        )
        ledger.admit(item(timeout_s=1000.0))
        breaks = 0
        while ledger.pop() is None:
            clock.now += 1.1
            if ledger.next_to_send():
                ledger.stream_opened()
                ledger.stream_ended(unavailable())
                breaks += 1
        assert breaks == 3 if not known else 40 < breaks < 60


def test_an_item_that_breaks_every_stream_fails_and_leaves_the_others_alone():
    ledger, clock = books(ordered=False)
    for _ in range(2):
        ledger.admit(item())
    outcomes = {}
    for _ in range(20):
        clock.now += 1.0
        ledger.stream_opened()
        while found := ledger.next_to_send():
            slot = found[0][0]
            # Item 0 gets as far as a progress event, and then the server dies; item 1 is answered once 0 is gone.
            progress = pb.ItemProgress(stage=1)
            ledger.receive(Parcel(pb.CompressResponse(item_id=slot.item_id, progress=progress)))
            if slot.index == 1 and 0 in outcomes:
                ledger.settle(slot, "answer")
        if ledger._under_way:
            ledger.stream_ended(unavailable())
        while (done := ledger.pop()) is not None:
            outcomes[done.index] = done.outcome
    assert isinstance(outcomes[0], ServerUnavailableError)
    assert len(outcomes) == 2


def test_a_draining_server_that_takes_nothing_is_not_asked_for_ever():
    ledger, clock = books(policy=RetryPolicy(attempts=3, reconnect_s=30.0))
    ledger.admit(item())
    error = unavailable(retry_after_s=1.0)
    error.reason = "SERVER_DRAINING"
    for _ in range(1000):
        ledger.stream_opened()
        ledger.draining()
        clock.now += ledger.stream_ended(error)
        if ledger.pop() is not None:
            break
    assert 129 < clock.now < 140
