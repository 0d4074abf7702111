"""Every way in which one item can be wrong: it gets its own error, naming the field; its neighbours do not notice."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from mpc_test_codecs import BAD_OUTPUT, BUG
from raw_wire import CODE, compress_messages, compress_one, decompress_messages, details, features, talk

from mpcompress_proto.tensors import MAX_CHUNK_BYTES
from mpcompress_proto.v1 import compression_pb2 as pb

F32 = pb.DATA_TYPE_FLOAT32
MAX = 1 << 20


def _spec(shape, name="h", dtype=F32):
    return pb.TensorSpec(name=name, dtype=dtype, shape=shape)


def _header(*specs, codec="store", **fields):
    return pb.CompressRequest(header=pb.CompressHeader(item_id=2, codec_id=codec, tensors=specs, **fields))


def _chunk(data, offset=0, index=0):
    return pb.CompressRequest(chunk=pb.TensorChunk(item_id=2, tensor_index=index, offset=offset, data=data))


def _unknown_field() -> pb.CodingParams:
    return pb.CodingParams.FromString(pb.CodingParams(qp_eighths=8).SerializeToString() + b"\xf8\x07\x01")


BAD_SPECS = {
    "zero": (_spec([0, 8]), "tensors[0].shape"),
    "negative": (_spec([-1, 8]), "tensors[0].shape"),
    "overflowing": (_spec([2**31 - 1] * 6), "tensors[0].shape"),
    "wraps to a small number": (_spec([2**30, 2**30, 16]), "tensors[0].shape"),
    "side too long": (_spec([2**31]), "tensors[0].shape"),
    "2^40 elements": (_spec([2**20, 2**20]), "tensors[0].shape"),
    "2^40 small elements": (_spec([2**20, 2**20], dtype=pb.DATA_TYPE_INT8), "tensors[0].shape"),
    "scalar": (_spec([]), "tensors[0].shape"),
    "too many axes": (_spec([1] * 7), "tensors[0].shape"),
    "codec takes fewer axes": (_spec([1] * 4), "tensors[0].shape"),
    "no dtype": (_spec([4], dtype=0), "tensors[0].dtype"),
    "unknown dtype": (_spec([4], dtype=99), "tensors[0].dtype"),
    "bad name": (_spec([4], name="H!"), "tensors[0].name"),
    "unknown name": (_spec([4], name="x"), "tensors[0].name"),
}
PARAMS = pb.CodingParams
BAD_PARAMS = {
    "qp": (PARAMS(qp_eighths=401), "params.qp_eighths"),
    "grid": (PARAMS(token_res=pb.TokenGrid(height=0, width=4)), "params.token_res"),
    "huge grid": (PARAMS(token_res=pb.TokenGrid(height=1, width=70000)), "params.token_res"),
    "prefix": (PARAMS(prefix_tokens=1025), "params.prefix_tokens"),
    "nan target": (PARAMS(target_bpfp=float("nan")), "params.target_bpfp"),
    "zero target": (PARAMS(target_nmse=0), "params.target_nmse"),
    "policy": (PARAMS(target_policy=9), "params.target_policy"),
    "other family": (PARAMS(klt=pb.KltParams(effort=1)), "params.klt"),
    "field from the future": (_unknown_field(), "params"),
}


async def _among_good(channel, bad, method="Compress"):
    """Sends item 2 between two good ones, and returns its error."""
    answers = await talk(channel, [*compress_messages(1, features(5)), *bad, *compress_messages(3, features(6))])
    assert answers[1].payload == features(5).tobytes()
    assert answers[3].payload == features(6).tobytes()
    assert answers[2].result is None
    return details(answers[2].error)


@pytest.mark.parametrize("case", BAD_SPECS)
async def test_bad_spec(start_server, connect, case):
    server = await start_server(limits={"max_item_bytes": MAX, "max_inflight_bytes": 2 * MAX})
    spec, field = BAD_SPECS[case]
    # Its chunks are already under way when it is refused.
    error = await _among_good(connect(server), [_header(spec), _chunk(b"1234"), _chunk(b"5678", 4)])
    assert (error["code"], error["fields"]) == (CODE.INVALID_ARGUMENT, [field])
    assert server.servicer.budget.used == 0


@pytest.mark.parametrize("case", BAD_PARAMS)
async def test_bad_parameter(start_server, connect, case):
    params, field = BAD_PARAMS[case]
    error = await _among_good(connect(await start_server()), [_header(_spec([1]), params=params, inline_data=b"1234")])
    assert (error["code"], error["fields"]) == (CODE.INVALID_ARGUMENT, [field])


async def test_plugin_parameters_reach_the_codec(start_server, connect):
    plugin = AnyMessage(type_url="type.example.com/x", value=b"y")
    channel = connect(await start_server())
    assert (await compress_one(channel, features(), params=pb.CodingParams(plugin=plugin))).error is None


async def test_tensors(start_server, connect):
    channel = connect(await start_server())
    for header, field in [
        (_header(), "tensors"),
        (_header(_spec([1]), _spec([1])), "tensors"),
        (_header(_spec([1]), _spec([1], name="")), "tensors"),
        (_header(*[_spec([1], name=f"t{i}") for i in range(9)]), "tensors"),
        (_header(_spec([1]), _spec([1], name="ctx")), "tensors[1].name"),
    ]:
        error = await _among_good(channel, [header])
        assert (error["code"], error["fields"]) == (CODE.INVALID_ARGUMENT, [field])


async def test_chunks(start_server, connect):
    channel = connect(await start_server())
    h = _spec([4])
    for bad, field in [
        ([_header(h), _chunk(b"12345678"), _chunk(b"1234", 4)], "chunk.offset"),  # overlap
        ([_header(h), _chunk(b"12345678"), _chunk(b"1234", 12)], "chunk.offset"),  # gap
        ([_header(h), _chunk(b"12345678", 8), _chunk(b"12345678")], "chunk.offset"),  # out of order
        ([_header(h), _chunk(b"1" * 17)], "chunk.data"),  # too long
        ([_header(h), _chunk(b"")], "chunk.data"),
        ([_header(h), _chunk(b"1234", index=1)], "chunk.offset"),
        ([_header(h), _chunk(b"1234", index=2**32 - 1)], "chunk.offset"),
        ([_header(h), _chunk(b"1234", offset=2**64 - 1)], "chunk.offset"),
        ([_header(h)], "chunk"),  # missing altogether
        ([_header(h), _chunk(b"1234")], "chunk"),  # missing at the end
        ([_header(h, inline_data=b"123")], "inline_data"),
        ([_header(h, inline_data=b"1" * 17)], "inline_data"),
        ([_header(_spec([2**20])), _chunk(b"1" * (MAX_CHUNK_BYTES + 1))], "chunk.data"),
    ]:
        error = await _among_good(channel, bad)
        assert (error["code"], error["fields"]) == (CODE.INVALID_ARGUMENT, [field]), bad


async def test_the_end_of_the_stream_ends_an_incomplete_item(start_server, connect):
    server = await start_server()
    answers = await talk(connect(server), [*compress_messages(1, features(5)), _header(_spec([4])), _chunk(b"1234")])
    assert answers[1].error is None
    assert details(answers[2].error)["reason"] == "INCOMPLETE_ITEM"
    assert server.servicer.budget.used == 0


async def test_codec_and_values(start_server, connect):
    codecs = [
        {"id": "store", "family": "test_bytes"},
        {"id": "gone", "family": "test_bytes", "options": {"missing": True}},
        {"id": "no-package", "family": "test_absent"},
        {"id": "no-file", "family": "test_bytes", "weights": "/no/such/file"},
    ]
    channel = connect(await start_server(codecs))
    nan = features(4)
    nan[3, 3] = np.nan
    for bad, code, reason in [
        ({"h": features(1), "codec": "nope"}, CODE.NOT_FOUND, "UNKNOWN_CODEC"),
        ({"h": features(1), "codec": ""}, CODE.NOT_FOUND, "UNKNOWN_CODEC"),
        ({"h": features(1), "codec": "gone"}, CODE.FAILED_PRECONDITION, "CODEC_UNAVAILABLE"),
        ({"h": features(1), "codec": "no-package"}, CODE.FAILED_PRECONDITION, "CODEC_UNAVAILABLE"),
        ({"h": features(1), "codec": "no-file"}, CODE.FAILED_PRECONDITION, "CODEC_UNAVAILABLE"),
        ({"h": nan}, CODE.INVALID_ARGUMENT, "NON_FINITE"),
        ({"h": features(1, BUG)}, CODE.INTERNAL, "INTERNAL"),
        ({"h": features(1), "params": PARAMS(prefix_tokens=77)}, CODE.INTERNAL, "INTERNAL"),
        ({"h": features(1), "timeout": Duration(seconds=-1)}, CODE.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
        ({"h": features(1), "timeout": Duration(seconds=10**9)}, CODE.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
    ]:
        error = await _among_good(channel, compress_messages(2, **bad))
        assert (error["code"], error["reason"]) == (code, reason)
        assert "/" not in error["message"]


async def test_larger_than_this_server_takes(start_server, connect):
    server = await start_server(limits={"max_item_bytes": MAX, "max_inflight_bytes": 2 * MAX})
    error = await _among_good(connect(server), [_header(_spec([MAX // 4 + 1])), _chunk(b"1234")])
    assert (error["code"], error["reason"]) == (CODE.RESOURCE_EXHAUSTED, "ITEM_TOO_LARGE")
    assert "QuotaFailure" in error["kinds"]
    largest = features(MAX // 32)
    assert (await compress_one(connect(server), largest)).payload == largest.tobytes()


async def test_request_ids(start_server, connect):
    channel = connect(await start_server())

    async def request_id(*metadata):
        answers = await talk(channel, compress_messages(1, features(1), codec="nope"), metadata=metadata)
        return details(answers[1].error)["request_id"]

    assert await request_id(("x-request-id", "abc-1")) == "abc-1"
    made_up = await request_id(("x-request-id", "a b\x7e" + "c" * 100))
    assert len(made_up) == 32
    assert made_up != await request_id()


class TestUnits:
    """Decompress: every field of a unit comes from a stranger."""

    @pytest.fixture
    async def coded(self, start_server, connect):
        self.server = await start_server(limits={"max_item_bytes": MAX, "max_inflight_bytes": 2 * MAX})
        self.channel = connect(self.server)
        got = await compress_one(self.channel, features(5))
        self.unit, self.payload = got.result.unit, got.payload

    async def _error(self, change=None, payload=None, **fields):
        unit = pb.CodedUnitHeader()
        unit.CopyFrom(self.unit)
        if change:
            change(unit)
        good = decompress_messages(1, self.unit, self.payload)
        bad = decompress_messages(2, unit, self.payload if payload is None else payload, **fields)
        answers = await talk(
            self.channel, [*good, *bad, *decompress_messages(3, self.unit, self.payload)], "Decompress"
        )
        for item in (1, 3):
            np.testing.assert_array_equal(answers[item].arrays()["h_hat"], features(5))
        assert self.server.servicer.budget.used == 0
        return details(answers[2].error)

    @pytest.mark.parametrize(
        ("field", "value", "named"),
        [
            ("format_version", 2, "unit.format_version"),
            ("codec_id", "NOPE", "unit.codec_id"),
            ("bitstream_version", 0, "unit.bitstream_version"),
            ("fingerprint", b"123", "unit.fingerprint"),
            ("arithmetic", 0, "unit.arithmetic"),
            ("arithmetic", 7, "unit.arithmetic"),
            ("ctx_hash", b"1", "unit.ctx_hash"),
            ("payload_bytes", 159, "unit.stream_bytes"),
            ("payload_crc32", 1, "unit.payload_crc32"),
        ],
    )
    async def test_field(self, coded, field, value, named):
        error = await self._error(lambda unit: setattr(unit, field, value))
        assert (error["code"], error["fields"]) == (CODE.INVALID_ARGUMENT, [named])

    async def test_tensors(self, coded):
        for shape, named in [
            ([0, 8], "unit.tensors[0].shape"),
            ([-5, 8], "unit.tensors[0].shape"),
            ([2**31 - 1] * 3, "unit.tensors[0].shape"),
            ([2**20, 2**20], "unit.tensors[0].shape"),
        ]:
            error = await self._error(lambda unit, shape=shape: unit.tensors[0].shape.__setitem__(slice(None), shape))
            assert (error["code"], error["fields"]) == (CODE.INVALID_ARGUMENT, [named])
        error = await self._error(lambda unit: unit.ClearField("tensors"))
        assert error["fields"] == ["unit.tensors"]
        error = await self._error(lambda unit: unit.tensors[0].shape.__setitem__(0, MAX // 16))
        assert error["reason"] == "ITEM_TOO_LARGE"

    async def test_identity(self, coded):
        for field, value, code, reason in [
            ("fingerprint", b"12345678", CODE.FAILED_PRECONDITION, "CODEC_MISMATCH"),
            ("bitstream_version", 2, CODE.FAILED_PRECONDITION, "CODEC_MISMATCH"),
        ]:
            error = await self._error(lambda unit, f=field, v=value: setattr(unit, f, v))
            assert (error["code"], error["reason"]) == (code, reason)

        def stranger(unit):
            unit.codec_id, unit.fingerprint = "other", b"12345678"

        assert (await self._error(stranger))["code"] == CODE.NOT_FOUND

    async def test_the_fingerprint_decides_under_whatever_id(self, coded):
        unit = pb.CodedUnitHeader()
        unit.CopyFrom(self.unit)
        unit.codec_id = "renamed"
        answers = await talk(self.channel, decompress_messages(1, unit, self.payload), "Decompress")
        np.testing.assert_array_equal(answers[1].arrays()["h_hat"], features(5))

    async def test_state_and_streams(self, coded):
        error = await self._error(lambda unit: unit.ClearField("plugin"))
        assert error["fields"] == ["unit.pstate"]
        error = await self._error(lambda unit: unit.klt.SetInParent())
        assert error["fields"] == ["unit.pstate"]
        error = await self._error(lambda unit: setattr(unit.plugin, "value", b"x"))
        assert (error["reason"], error["fields"]) == ("CORRUPT_BITSTREAM", ["unit.plugin.value"])
        error = await self._error(lambda unit: unit.stream_bytes.__setitem__(0, 1))
        assert error["fields"] == ["unit.stream_bytes"]
        error = await self._error(lambda unit: unit.ClearField("stream_bytes"))
        assert error["fields"] == ["unit.stream_bytes"]
        error = await self._error(lambda unit: unit.stream_bytes.extend([0] * 70000))
        assert error["fields"] == ["unit.stream_bytes"]

    async def test_payload(self, coded):
        flipped = bytes([self.payload[0] ^ 1]) + self.payload[1:]
        error = await self._error(payload=flipped)
        assert (error["reason"], error["fields"]) == ("CORRUPT_UNIT", ["unit.payload_crc32"])
        for payload in (self.payload[:-1], self.payload + b"x", b"x"):
            error = await self._error(payload=payload)
            assert (error["code"], error["fields"]) == (CODE.INVALID_ARGUMENT, ["inline_data"])
        error = await self._error(payload=self.payload[:-1], chunk=50)
        assert error["fields"] == ["chunk"]
        error = await self._error(payload=self.payload + b"x", chunk=150)
        assert error["fields"] == ["payload.data"]

    async def test_no_unit(self, coded):
        request = pb.DecompressRequest(header=pb.DecompressHeader(item_id=1))
        answers = await talk(self.channel, [request], "Decompress")
        assert details(answers[1].error)["fields"] == ["unit"]

    async def test_an_output_that_breaks_its_promise_is_a_bug(self, coded):
        got = await compress_one(self.channel, features(5, BAD_OUTPUT))
        answers = await talk(self.channel, decompress_messages(1, got.result.unit, got.payload), "Decompress")
        assert details(answers[1].error)["reason"] == "INTERNAL"
