"""Tensors of other libraries in, and into the caller's buffers out; the client itself never imports torch."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from conftest import FINAL
from scripted_server import store

from mpcompress_client import AsyncCompressionClient, CompressionClient, InvalidRequestError
from mpcompress_client.arrays import named_arrays
from mpcompress_proto.tensors import pieces, wire_view
from mpcompress_proto.v1 import compression_pb2 as pb

torch = pytest.importorskip("torch")
TYPES = ["float32", "float16", "bfloat16", "int8", "int16", "int32"]
BF16 = np.dtype(ml_dtypes.bfloat16)


def echo(requests, context):
    """Script of Decompress: the payload is the tensor, in the dtype asked for or its own."""
    header, data = None, bytearray()
    for request in requests:
        if request.WhichOneof("message") == "header":
            header, data = request.header, bytearray(request.header.inline_data)
        else:
            data += request.payload.data
        if len(data) < header.unit.payload_bytes:
            continue
        spec = header.unit.tensors[0]
        if header.output_dtype not in (0, spec.dtype):
            tensor = np.frombuffer(bytes(data), np.float32).astype({2: np.float16, 3: BF16}[header.output_dtype])
            data, spec.dtype = bytearray(wire_view(tensor)), header.output_dtype
        result = pb.DecompressedItem(tensors=[spec])
        if len(data) < 1 << 16:
            result.inline_data = bytes(data)
            yield pb.DecompressResponse(item_id=header.item_id, result=result)
            continue
        yield pb.DecompressResponse(item_id=header.item_id, result=result)
        for _, offset, part in pieces([memoryview(data)]):
            chunk = pb.TensorChunk(item_id=header.item_id, offset=offset, data=part)
            yield pb.DecompressResponse(item_id=header.item_id, chunk=chunk)


@pytest.fixture
def stored(scripted):
    with CompressionClient(scripted(compress=store, decompress=echo)) as client:
        yield client


# ------------------------------------------------------------------------------------------------------------- in


@pytest.mark.parametrize("name", TYPES)
def test_torch_tensors_of_every_type(name):
    tensor = torch.arange(24).reshape(4, 6).to(getattr(torch, name))
    for given in (tensor, tensor.t(), tensor[:, ::2], tensor[1:, 1:], tensor[None].expand(2, 4, 6)):
        (array,) = named_arrays(given).values()
        assert array.dtype.name == name
        np.testing.assert_array_equal(array.astype(np.float64), given.to(torch.float64).numpy())
    (shared,) = named_arrays(tensor).values()
    tensor[0, 0] = 7
    assert shared[0, 0] == 7  # a view, not a copy


def test_torch_tensors_with_gradients_parameters_and_negative_views():
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    assert named_arrays(parameter)["h"].tolist() == [[1.0] * 3] * 2
    assert named_arrays(parameter * 2)["h"].tolist() == [[2.0] * 3] * 2
    negative = torch.view_as_complex(torch.ones(2, 3, 2)).conj().imag
    assert negative.is_neg()
    assert named_arrays(negative)["h"].tolist() == [[-1.0] * 3] * 2


def test_torch_tensors_that_hold_no_values():
    with pytest.raises(InvalidRequestError, match="cannot become a CPU array"):
        named_arrays(torch.empty(2, 3, device="meta"))
    with pytest.raises(InvalidRequestError, match="cannot become a CPU array"):
        named_arrays(torch.ones(2, 3).to_sparse())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", TYPES)
def test_cuda_tensors(stored, name):
    tensor = torch.arange(24, device="cuda").reshape(4, 6).to(getattr(torch, name))
    unit = stored.compress(tensor, codec="x")
    out = torch.empty_like(tensor)
    assert stored.decompress(unit, out=out) is out
    assert torch.equal(out, tensor)


def test_arrays_of_a_device_library_that_numpy_refuses():
    class OnDevice:
        """As cupy: numpy may not convert it by itself."""

        @property
        def __cuda_array_interface__(self):
            return {"version": 3}

        def __array__(self, dtype=None, copy=None):
            raise TypeError("implicit conversion is not allowed")

        def get(self):
            return np.ones((2, 3), np.float32)

    assert named_arrays(OnDevice())["h"].tolist() == [[1.0] * 3] * 2


def test_named_tensors_of_several_libraries(stored):
    unit = stored.compress({"h": torch.ones(2, 3, dtype=torch.bfloat16), "ctx": np.zeros((2, 3), np.int8)}, codec="x")
    assert [spec.name for spec in unit.header.tensors] == ["h", "ctx"]
    assert unit.payload == wire_view(np.ones((2, 3), BF16)).tobytes() + bytes(6)


def test_no_bfloat16_is_lost_and_torch_is_not_imported(server, final, tmp_path):
    path = tmp_path / "bf16.npy"
    bits = final[0].astype(BF16)
    np.save(path, bits.view(np.int16))
    code = f"""
import sys, numpy as np, ml_dtypes
from mpcompress_client import CompressionClient
h = np.load({str(path)!r}).view(ml_dtypes.bfloat16)
with CompressionClient({server!r}) as client:
    unit = client.compress(h, codec={FINAL!r}, qp=20)
    out = np.empty(h.shape, np.float32)
    assert client.decompress(unit, out=out) is out
    assert client.decompress(unit).dtype == ml_dtypes.bfloat16
print(unit.payload_crc32 if hasattr(unit, "payload_crc32") else unit.header.payload_crc32, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with CompressionClient(server) as client:
        unit = client.compress(torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16), codec=FINAL, qp=20)
    assert done.stdout.split() == [str(unit.header.payload_crc32), "False"]


# ------------------------------------------------------------------------------------------------------------ out


@pytest.mark.parametrize("shape", [(4, 6), (300, 400)])
def test_out_takes_the_result_whatever_it_is(stored, shape):
    tensor = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    unit = stored.compress(tensor, codec="x")
    backwards = np.empty(shape[::-1], np.float32).T
    for out in (np.empty(shape, np.float32), backwards, np.empty((2, *shape), np.float32)[1]):
        assert stored.decompress(unit, out=out) is out
        np.testing.assert_array_equal(out, tensor)
    strided = torch.empty(shape[0], 2 * shape[1])[:, ::2]
    assert stored.decompress(unit, out=strided) is strided
    np.testing.assert_array_equal(strided.numpy(), tensor)
    learned = torch.nn.Parameter(torch.empty(shape))
    assert stored.decompress(unit, out=learned) is learned
    np.testing.assert_array_equal(learned.detach().numpy(), tensor)


def test_out_sets_the_dtype(stored):
    tensor = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    unit = stored.compress(tensor, codec="x")
    half = np.empty((4, 6), np.float16)
    np.testing.assert_array_equal(stored.decompress(unit, out=half), tensor.astype(np.float16))
    brain = torch.empty(4, 6, dtype=torch.bfloat16)
    stored.decompress(unit, out=brain, dtype="bfloat16")
    np.testing.assert_array_equal(named_arrays(brain)["h"], tensor.astype(BF16))
    named = {"h": np.empty((4, 6), np.float16)}
    assert stored.decompress(unit, out=named) is named
    np.testing.assert_array_equal(named["h"], tensor.astype(np.float16))


def _read_only() -> np.ndarray:
    array = np.empty((4, 6), np.float32)
    array.flags.writeable = False
    return array


BUFFERS = {
    "shape": (np.empty((6, 4), np.float32), {}, "shape (6, 4)"),
    "torch shape": (torch.empty(4), {}, "shape (4,)"),
    "read-only": (_read_only(), {}, "read-only"),
    "big-endian": (np.empty((4, 6), ">f4"), {}, "big-endian"),
    "dtype": (np.empty((4, 6)), {}, "float64 does not travel"),
    "another dtype": (np.empty((4, 6), np.float16), {"dtype": "float32"}, "out is float16, but dtype='float32'"),
    "a list": ([[0.0] * 6] * 4, {}, "out is a list"),
    "bytes": (bytearray(96), {}, "out is a bytearray"),
    "no buffers": ({}, {}, "no buffer"),
    "other names": ({"h_hat_share": np.empty((4, 6), np.float32)}, {}, "the codec gives h"),
    "named shape": ({"h": np.empty((4, 7), np.float32)}, {}, "shape (4, 7)"),
    "two dtypes": ({"a": np.empty(4, np.float32), "b": np.empty(4, np.float16)}, {}, "differ in dtype"),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_out_that_does_not_fit(stored, name):
    out, arguments, words = BUFFERS[name]
    unit = stored.compress(np.ones((4, 6), np.float32), codec="x")
    with pytest.raises(InvalidRequestError) as caught:
        stored.decompress(unit, out=out, **arguments)
    assert words in str(caught.value)
    assert caught.value.field == "out"


def test_an_item_that_fails_leaves_out_as_it_was(scripted):
    def breaks(requests, context):
        header = next(requests).header
        yield pb.DecompressResponse(item_id=header.item_id, result=pb.DecompressedItem(tensors=header.unit.tensors))
        chunk = pb.TensorChunk(item_id=header.item_id, data=b"\x01" * 8)
        yield pb.DecompressResponse(item_id=header.item_id, chunk=chunk)

    with CompressionClient(scripted(compress=store, decompress=breaks)) as client:
        unit = client.compress(np.ones((4, 6), np.float32), codec="x")
        out = np.full((4, 6), 7, np.float32)
        with pytest.raises(Exception, match="without answering"):
            client.decompress(unit, out=out)
        assert (out == 7).all()


async def test_out_of_many(scripted):
    target = scripted(compress=store, decompress=echo)
    tensors = [np.full((4, 6), number, np.float32) for number in range(5)]
    with CompressionClient(target) as client:
        units = list(client.compress_many(tensors, codec="x"))
        together = np.empty((5, 4, 6), np.float32)
        for index, result in enumerate(client.decompress_many(units, out=together)):
            assert np.shares_memory(result, together[index])
        np.testing.assert_array_equal(together, np.stack(tensors))
        apart = [np.empty((4, 6), np.float32) for _ in range(3)]
        results = list(client.decompress_many(units, out=apart, errors="return"))
        assert all(result is buffer for result, buffer in zip(results, apart, strict=False))
        assert [type(result) for result in results[3:]] == [InvalidRequestError] * 2
        assert "no buffer for item 3" in str(results[3])
    async with AsyncCompressionClient(target) as connected:
        together[:] = 0
        async for _ in connected.decompress_many(units, out=together):
            pass
        np.testing.assert_array_equal(together, np.stack(tensors))


def test_out_against_a_real_server(client, final):
    unit = client.compress(final[0], codec=FINAL, qp=20)
    out = torch.empty(final[0].shape, dtype=torch.float16)
    client.decompress(unit, out=out)
    np.testing.assert_array_equal(out.numpy(), client.decompress(unit))
