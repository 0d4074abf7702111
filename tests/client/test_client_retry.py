"""What is sent again, how often and when: the policy, the books with a clock of their own, and scripted servers."""

from __future__ import annotations

import itertools
import json
import threading
from itertools import count

import grpc
import numpy as np
import pytest
from conftest import FINAL
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from scripted_server import answer, items, refuse, status, store

from mpcompress_client import (
    AccessDeniedError,
    CodedUnit,
    CompressionClient,
    DeadlineError,
    InvalidRequestError,
    Progress,
    ResourceExhaustedError,
    RetryPolicy,
    ServerError,
    ServerUnavailableError,
)
from mpcompress_client.items import CompressItem
from mpcompress_client.ledger import GRACE_S, Ledger
from mpcompress_client.retry import NEVER, Contact, service_config
from mpcompress_proto.v1 import compression_pb2 as pb

pytestmark = pytest.mark.usefixtures("no_thread_leak")
CODE = grpc.StatusCode
QUICK = RetryPolicy(attempts=3, initial_backoff_s=0.001, max_backoff_s=0.01)


def numbered(number: int, elements: int = 4) -> np.ndarray:
    return np.full(elements, number, np.int32)


def number_of(unit) -> int:
    assert isinstance(unit, CodedUnit), unit
    return int(np.frombuffer(unit.payload, np.int32)[0])


def again_in(milliseconds: int) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromMilliseconds(milliseconds)
    return error_details_pb2.RetryInfo(retry_delay=delay)


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


def test_grpc_repeats_a_call_that_got_no_answer(scripted):
    calls = count()

    def unsteady(request, context):
        if next(calls) < 2:
            context.abort(CODE.UNAVAILABLE, "not yet")
        yield pb.ListCodecsResponse(server_version="1")

    target = scripted(list_codecs=unsteady)
    with CompressionClient(target) as client:
        assert client.limits().server_version == "1"
    calls = count()
    with CompressionClient(target, retry=None) as client, pytest.raises(ServerUnavailableError, match="not yet"):
        client.limits()
    assert next(calls) == 1


# ------------------------------------------------------------------------------------- the books, without a server


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
    return CompressItem({"h": numbered(1)}, codec_id="x", params=pb.CodingParams(), timeout_s=timeout_s)


def unavailable(retry_after_s: float | None = None) -> ServerUnavailableError:
    error = ServerUnavailableError("gone")
    error.retry_after_s = retry_after_s
    return error


def test_the_time_limit_covers_all_attempts():
    ledger, clock = books(policy=RetryPolicy(attempts=10, max_backoff_s=0.0))
    ledger.admit(item(timeout_s=10.0))
    slot, left_s = ledger.next_to_send()
    assert left_s == 10.0
    clock.now += 4
    ledger.settle(slot, unavailable())
    assert ledger.next_to_send() == (slot, 6.0)
    clock.now += 5
    ledger.settle(slot, unavailable())
    clock.now += 2
    assert ledger.next_to_send() is None
    assert isinstance(ledger.pop().outcome, ServerUnavailableError)


def test_an_item_waits_as_long_as_the_server_asked_for():
    ledger, clock = books()
    ledger.admit(item())
    slot, _ = ledger.next_to_send()
    ledger.settle(slot, unavailable(retry_after_s=5.0))
    assert ledger.next_to_send() is None
    assert 5.0 <= ledger.next_due_s() < 5.1
    clock.now += 5.1
    assert ledger.next_to_send()[0] is slot


def test_no_attempt_is_made_that_would_come_too_late():
    ledger, _ = books()
    ledger.admit(item(timeout_s=3.0))
    slot, _ = ledger.next_to_send()
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
    assert ledger.next_to_send() is not None


def test_a_server_that_never_answered_is_called_a_few_times_one_that_did_for_a_while():
    for known in (False, True):
        ledger, clock = books(
            policy=RetryPolicy(attempts=3, max_backoff_s=1.0, reconnect_s=60.0), contact=Contact(known)
        )
        ledger.admit(item(timeout_s=1000.0))
        breaks = 0
        while ledger.pop() is None:
            clock.now += 1.1
            if ledger.next_to_send() is not None:
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
        while (found := ledger.next_to_send()) is not None:
            slot = found[0]
            # Item 0 gets as far as a progress event, and then the server dies; item 1 is answered once 0 is gone.
            ledger.receive(pb.CompressResponse(item_id=slot.item_id, progress=pb.ItemProgress(stage=1)))
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


# ------------------------------------------------------------------------------------- against a scripted server


@pytest.mark.parametrize("code", [CODE.RESOURCE_EXHAUSTED, CODE.UNAVAILABLE])
def test_an_item_with_retry_info_is_sent_again(scripted, code):
    refused: set[int] = set()

    def busy(requests, context):
        for header, data in items(requests):
            if header.item_id % 2 and header.item_id not in refused:
                refused.add(header.item_id)
                yield refuse(header.item_id, status(code, "full", again_in(5)))
            else:
                yield from answer(header, data)

    with CompressionClient(scripted(compress=busy)) as client:
        events: list[Progress] = []
        units = client.compress_many(map(numbered, range(7)), codec="x", progress=events.append)
        assert [number_of(unit) for unit in units] == list(range(7))
        assert sorted(event.index for event in events if event.stage == "resubmitted") == [0, 2, 4, 6]
        refused.clear()
        assert number_of(client.compress(numbered(3), codec="x")) == 3


def test_without_retry_info_too_large_stays_too_large(scripted):
    calls = count()

    def refuses(requests, context):
        for header, _ in items(requests):
            next(calls)
            yield refuse(header.item_id, status(CODE.RESOURCE_EXHAUSTED, "larger than this server takes"))

    with CompressionClient(scripted(compress=refuses)) as client, pytest.raises(ResourceExhaustedError, match="larger"):
        client.compress(numbered(1), codec="x")
    assert next(calls) == 1


@pytest.mark.parametrize(("retry", "attempts"), [(QUICK, 3), (None, 1)])
def test_attempts_are_bounded_and_can_be_switched_off(scripted, retry, attempts):
    calls = count()

    def always_full(requests, context):
        for header, _ in items(requests):
            next(calls)
            yield refuse(header.item_id, status(CODE.RESOURCE_EXHAUSTED, "full", again_in(1)))

    with CompressionClient(scripted(compress=always_full), retry=retry) as client:
        with pytest.raises(ResourceExhaustedError, match="full") as caught:
            client.compress(numbered(1), codec="x")
        assert caught.value.retry_after_s == 0.001
    assert next(calls) == attempts


def test_streams_that_break_halfway_through_an_answer(scripted):
    """What was received of an answer is forgotten: the item is answered from its start over the next stream."""
    streams = count()

    def breaks(requests, context):
        whole = next(streams) % 2
        for header, data in items(requests):
            responses = list(answer(header, data, chunk=5))
            yield from responses if whole else responses[:2]
            if not whole:
                context.abort(CODE.UNAVAILABLE, "gone")

    with CompressionClient(scripted(compress=breaks), retry=QUICK) as client:
        units = client.compress_many(map(numbered, range(6)), codec="x", look_ahead=3)
        assert [number_of(unit) for unit in units] == list(range(6))
        assert number_of(client.compress(numbered(8), codec="x")) == 8


def test_a_stream_that_breaks_while_the_producer_waits(scripted):
    """The items that were sent go over a new stream while the old one's sending thread is still in the producer."""
    streams, released = count(), threading.Event()

    def breaks_once(requests, context):
        first = next(streams) == 0
        for header, data in items(requests):
            if first:
                yield pb.CompressResponse(item_id=header.item_id, progress=pb.ItemProgress(stage=1))
                context.abort(CODE.UNAVAILABLE, "gone")
            yield from answer(header, data)

    def producer():
        yield numbered(0)
        assert released.wait(30)
        yield numbered(1)

    with CompressionClient(scripted(compress=breaks_once), retry=QUICK) as client:
        units = client.compress_many(producer(), codec="x")
        assert number_of(next(units)) == 0
        released.set()
        assert number_of(next(units)) == 1
        assert list(units) == []


@pytest.mark.parametrize("errors", ["raise", "return"])
def test_a_stream_that_is_refused_is_not_tried_for_ever(scripted, errors):
    streams = count()

    def refuses(requests, context):
        next(streams)
        context.abort(CODE.UNAUTHENTICATED, "no token")

    with CompressionClient(scripted(compress=refuses)) as client:
        results = client.compress_many(map(numbered, range(5)), codec="x", errors=errors, look_ahead=2)
        if errors == "raise":
            with pytest.raises(AccessDeniedError, match="no token"):
                next(results)
        else:
            assert [type(result) for result in results] == [AccessDeniedError] * 5
    assert next(streams) <= 6


def test_a_broken_contract_is_not_sent_again(scripted):
    sent = []

    def mute(requests, context):
        # One more stream may bring nothing: it finds that there is no item left.
        sent.extend(request.header.item_id for request in itertools.islice(requests, 1))
        return []

    with CompressionClient(scripted(compress=mute)) as client:
        with pytest.raises(ServerError, match="without answering"):
            client.compress(numbered(1), codec="x")
        assert sent == [1]
        results = list(client.compress_many(map(numbered, range(5)), codec="x", errors="return"))
        assert [type(result) for result in results] == [ServerError] * 5
    assert len(sent) == len(set(sent[1:])) + 1


def test_a_server_that_comes_late_is_reached(scripted):
    """Nothing listens at first: the second attempt finds the server."""
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        opened = count()

        class LateChannel:
            """Gives streams to nowhere first, then to a server."""

            def stream_stream(self, method, **serializers):
                nowhere = channel.stream_stream(method, **serializers)
                somewhere = there.stream_stream(method, **serializers)
                return lambda *a, **k: (nowhere if next(opened) == 0 else somewhere)(*a, **k)

            def __getattr__(self, name):
                return getattr(channel, name)

        with grpc.insecure_channel(scripted(compress=store)) as there:
            client = CompressionClient("late:1", channel=LateChannel(), retry=QUICK)
            assert number_of(client.compress(numbered(4), codec="x")) == 4


def test_results_as_they_finish(scripted):
    """Later items overtake the first, which waits for all others."""

    def overtakes(requests, context):
        first = None
        for header, data in items(requests):
            if header.item_id == 1:
                first = (header, data)
            else:
                yield from answer(header, data)
        yield from answer(*first)

    with CompressionClient(scripted(compress=overtakes)) as client:
        many = client.compress_many(map(numbered, range(6)), codec="x", look_ahead=6)
        found = [(index, number_of(unit)) for index, unit in many.as_completed()]
        assert found == [(n, n) for n in (1, 2, 3, 4, 5, 0)]
        with pytest.raises(InvalidRequestError, match="instead"):
            many.as_completed()
        bad = [numbered(0), "no tensor", numbered(2)]
        many = client.compress_many(bad, codec="x", look_ahead=6, errors="return")
        results = dict(many.as_completed())
        assert isinstance(results[1], InvalidRequestError)
        assert [number_of(results[index]) for index in (0, 2)] == [0, 2]


def test_both_sides_slow(scripted):
    """Neither a slow producer nor a slow consumer nor a slow server stops the other directions."""
    pause = threading.Event()  # never set: a wait on it is a pause

    def slow(requests, context):
        for header, data in items(requests):
            pause.wait(0.001)
            yield from answer(header, data)

    def producer():
        for number in range(40):
            pause.wait(0.001)
            yield numbered(number, elements=1 << 17)

    with CompressionClient(scripted(compress=slow)) as client:
        for number, unit in enumerate(client.compress_many(producer(), codec="x", look_ahead=3)):
            pause.wait(0.002)
            assert number_of(unit) == number
    assert number == 39


def test_progress_events(scripted):
    def reports(requests, context):
        for header, data in items(requests):
            assert header.want_progress
            for event in (
                pb.ItemProgress(stage=1),
                pb.ItemProgress(stage=2, queue_position=7),
                pb.ItemProgress(stage=3),
                pb.ItemProgress(stage=4, parts_done=1, parts_total=3, elapsed=Duration(seconds=2)),
                pb.ItemProgress(stage=99),
            ):
                yield pb.CompressResponse(item_id=header.item_id, progress=event)
            yield from answer(header, data)

    events: list[Progress] = []
    with CompressionClient(scripted(compress=reports)) as client:
        client.compress(numbered(1), codec="x", progress=events.append)
        assert events == [
            Progress(index=0, stage="accepted"),
            Progress(index=0, stage="queued", queue_position=7),
            Progress(index=0, stage="started"),
            Progress(index=0, stage="progress", parts_done=1, parts_total=3, elapsed_s=2.0),
            Progress(index=0, stage="done"),
        ]
        with pytest.raises(InvalidRequestError, match="progress is a function"):
            client.compress(numbered(1), codec="x", progress=3)

        def fails(event):
            raise KeyError("enough")

        with pytest.raises(KeyError, match="enough"):
            client.compress(numbered(1), codec="x", progress=fails)


def test_progress_of_a_real_server(client, final):
    stages: dict[int, list[str]] = {0: [], 1: [], 2: []}
    many = client.compress_many(final[:3], codec=FINAL, progress=lambda event: stages[event.index].append(event.stage))
    assert len(list(many)) == 3
    for seen in stages.values():
        assert seen[0] == "accepted"
        assert seen[-1] == "done"
