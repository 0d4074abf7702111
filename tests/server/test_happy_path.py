"""Compress and Decompress over a real socket, inline and in chunks, alone and many on one stream."""

from __future__ import annotations

import numpy as np
import pytest
from raw_wire import CODE, compress_messages, compress_one, decompress_messages, details, features, talk

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc

STAGE = pb.ItemProgress


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int16", "int32"])
@pytest.mark.parametrize("chunk", [None, 100])
async def test_an_item_comes_back_as_it_was(start_server, connect, dtype, chunk):
    channel = connect(await start_server())
    import ml_dtypes

    h = features().astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    got = await compress_one(channel, h, chunk=chunk)
    assert got.error is None
    assert got.result.unit.codec_id == "store"
    assert len(got.payload) == got.result.unit.payload_bytes == h.nbytes
    assert got.result.report.bpfp > 8 * h.itemsize
    back = (await talk(channel, decompress_messages(9, got.result.unit, got.payload, chunk=chunk), "Decompress"))[9]
    (array,) = back.arrays().values()
    assert array.dtype == h.dtype
    np.testing.assert_array_equal(array, h)


async def test_large_items_travel_in_chunks(start_server, connect):
    channel = connect(await start_server())
    h = features(100_000)
    got = await compress_one(channel, h)
    assert not got.result.inline_payload
    assert got.payload == h.tobytes()
    back = (await talk(channel, decompress_messages(1, got.result.unit, got.payload), "Decompress"))[1]
    np.testing.assert_array_equal(back.arrays()["h_hat"], h)


async def test_many_items_of_one_stream(start_server, connect):
    channel = connect(await start_server())
    arrays = {item: features(1 + item * 37 % 5000) for item in range(200)}
    requests = [message for item, h in arrays.items() for message in compress_messages(item, h)]
    answers = await talk(channel, requests)
    assert {item: got.payload for item, got in answers.items()} == {i: h.tobytes() for i, h in arrays.items()}


async def test_an_id_can_be_used_again_after_its_answer(start_server, connect):
    channel = connect(await start_server())
    call = pb_grpc.CompressionServiceStub(channel).Compress()
    for size in (4, 5, 6):
        await call.write(compress_messages(7, features(size))[0])
        response = await call.read()
        assert response.result.inline_payload == features(size).tobytes()
    await call.done_writing()


async def test_context_tensors(start_server, connect):
    codecs = [{"id": "store", "family": "test_bytes", "options": {"context": True}}]
    channel = connect(await start_server(codecs))
    h, ctx = features(3).astype(np.float16)[:, :5], features(7)
    got = await compress_one(channel, {"ctx": ctx, "h": h})
    assert [spec.name for spec in got.result.unit.tensors] == ["h"]
    unit, payload = got.result.unit, got.payload
    answers = await talk(
        channel,
        decompress_messages(1, unit, payload, {"ctx": ctx})
        + decompress_messages(2, unit, payload, {"ctx": ctx}, chunk=11)
        + decompress_messages(3, unit, payload, {"ctx": ctx + 1})
        + decompress_messages(4, unit, payload),
        "Decompress",
    )
    np.testing.assert_array_equal(answers[1].arrays()["h_hat"], h)
    np.testing.assert_array_equal(answers[2].arrays()["h_hat"], h)
    assert details(answers[3].error)["code"] == CODE.FAILED_PRECONDITION
    assert details(answers[4].error)["fields"] == ["tensors"]


async def test_output_dtype(start_server, connect):
    channel = connect(await start_server())
    h = features()
    h[0, 0] = 1e6
    got = await compress_one(channel, h)
    unit, payload = got.result.unit, got.payload
    answers = await talk(
        channel,
        decompress_messages(1, unit, payload, output_dtype=pb.DATA_TYPE_FLOAT16)
        + decompress_messages(2, unit, payload, output_dtype=pb.DATA_TYPE_BFLOAT16)
        + decompress_messages(3, unit, payload, output_dtype=pb.DATA_TYPE_INT8)
        + decompress_messages(4, unit, payload, output_dtype=99),
        "Decompress",
    )
    half = answers[1].arrays()["h_hat"]
    assert half.dtype == np.float16
    assert half[0, 0] == 65504
    np.testing.assert_array_equal(half[1:], h[1:].astype(np.float16))
    assert answers[2].arrays()["h_hat"].dtype.name == "bfloat16"
    for item in (3, 4):
        assert details(answers[item].error)["fields"] == ["output_dtype"]


async def test_progress_comes_in_order_when_asked_for(start_server, connect):
    channel = connect(await start_server())
    answers = await talk(
        channel, compress_messages(1, features(), want_progress=True) + compress_messages(2, features())
    )
    assert answers[1].stages == [STAGE.STAGE_ACCEPTED, STAGE.STAGE_QUEUED, STAGE.STAGE_STARTED]
    assert answers[2].stages == []


async def test_an_empty_stream_ends_well(start_server, connect):
    assert await talk(connect(await start_server()), []) == {}
