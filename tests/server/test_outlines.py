"""Equal headers are resolved once, whoever sends them; what may change between two of them is asked each time."""

from __future__ import annotations

import gc
import weakref

import pytest
from mpc_test_codecs import load
from raw_wire import compress_messages, features

from mpcompress.codec import CodingParams
from mpcompress.errors import CodecUnavailableError, InvalidInputError
from mpcompress.registry import CodecSpec
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server import outlines
from mpcompress_server.codecs import CodecSet, LoadedCodec
from mpcompress_server.operations import CompressOperation
from mpcompress_server.outlines import BatchKey, said_by
from mpcompress_server.routing import Router
from mpcompress_server.scheduler import Finished
from mpcompress_server.settings import CodecEntry, Limits


class Resolving:
    """A codec, and how often it was asked."""

    def __init__(self, codec_id: str = "store") -> None:
        self.asked = 0
        codec = load(CodecSpec(id=codec_id, family="test_bytes"))
        original = codec.resolve

        def resolve(specs, params: CodingParams) -> CodingParams:
            self.asked += 1
            return original(specs, params)

        codec.resolve = resolve
        self.loaded = LoadedCodec(entry=CodecEntry(id=codec_id, family="test_bytes"), codec=codec)


def header(tokens: int = 5, **changes) -> pb.CompressHeader:
    found = pb.CompressHeader()
    found.CopyFrom(compress_messages(1, features(tokens))[0].header)
    found.MergeFrom(pb.CompressHeader(**changes))
    return found


def operation(*codecs: Resolving) -> tuple[CompressOperation, Router]:
    router = Router(CodecSet([codec.loaded for codec in codecs]))
    return CompressOperation(router, Limits()), router


def test_headers_that_differ_in_the_items_own_are_resolved_once():
    codec = Resolving()
    compress, _ = operation(codec)
    first = compress.plan(header())
    second = compress.plan(header(item_id=9, want_progress=True, timeout={"seconds": 5}))
    assert codec.asked == 1
    assert first.key == second.key
    assert first.sizes == second.sizes == [features(5).nbytes]
    other = compress.plan(header(6))
    assert codec.asked == 2
    assert other.key != first.key
    assert other.sizes == [features(6).nbytes]


def test_each_answer_has_its_own_item_and_unit():
    codec = Resolving()
    compress, _ = operation(codec)
    for number in (1, 2):
        plan = compress.plan(header(item_id=number))
        work = plan.work([features(5).view("u1").reshape(-1) + number])
        (coded,) = codec.loaded.codec.compress([work.tensors], work.params)
        (parcel,) = plan.answer(Finished(outcome=coded, coding_s=0.25)).messages
        unit = CodedUnit(header=parcel.message.result.unit, payload=bytes(parcel.bulk))
        assert parcel.message.item_id == number
        assert unit.payload == b"".join(coded.strings)
        assert parcel.message.result.report.bpfp == pytest.approx(8 * len(unit.to_bytes()) / unit.elements)


def test_a_codec_that_was_exchanged_resolves_anew_and_the_old_one_can_go():
    old, new = Resolving(), Resolving()
    compress, router = operation(old)
    compress.plan(header())
    router.codecs = CodecSet([new.loaded])
    assert compress.plan(header()).loaded is new.loaded
    assert new.asked == 1
    gone = weakref.ref(old.loaded)
    del old
    gc.collect()
    assert gone() is None


def test_whether_a_codec_can_code_is_asked_each_time():
    codec = Resolving()
    compress, _ = operation(codec)
    compress.plan(header())
    codec.loaded.unavailable = "its weights are gone"
    with pytest.raises(CodecUnavailableError, match="weights are gone"):
        compress.plan(header())


def test_a_header_that_is_refused_is_refused_again():
    codec = Resolving()
    compress, _ = operation(codec)
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="no tensor"):
            compress.plan(header(tensors=[pb.TensorSpec(name="other", dtype=pb.DATA_TYPE_INT8, shape=[1])]))


def test_headers_without_end_cost_no_memory(monkeypatch):
    monkeypatch.setattr(outlines, "_MOST", 4)
    codec = Resolving()
    compress, _ = operation(codec)
    for tokens in range(1, 10):
        compress.plan(header(tokens))
    assert len(compress._outlines) == 4
    large = header()
    large.params.plugin.value = bytes(5000)
    said = said_by(large)
    kept = outlines.Outlines()
    kept.keep(said, object())
    assert kept.find(said) is None


def test_keys_are_equal_when_their_values_are():
    assert BatchKey(("a", 1)) == BatchKey(("a", 1))
    assert hash(BatchKey(("a", 1))) == hash(BatchKey(("a", 1)))
    assert BatchKey(("a", 1)) != BatchKey(("a", 2))
    assert BatchKey(1) != 1
