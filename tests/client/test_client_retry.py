"""What is sent again, how often and when, against scripted servers; the rules alone: test_client_ledger.py."""

from __future__ import annotations

import itertools
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
    InvalidRequestError,
    Progress,
    ResourceExhaustedError,
    RetryPolicy,
    ServerError,
    ServerUnavailableError,
)
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
