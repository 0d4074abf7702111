"""Arrays on the wire: every dtype there and back, hostile specs, chunks in the wrong order."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mpcompress_proto.errors import WireError
from mpcompress_proto.tensors import (
    DTYPE_NAMES,
    MAX_SIDE,
    PayloadReceiver,
    Receiver,
    array_from,
    check_spec,
    check_specs,
    data_type,
    dtype_of,
    pieces,
    spec_of,
    wire_view,
)
from mpcompress_proto.v1 import compression_pb2 as pb


def _array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    values = np.random.default_rng(7).normal(0, 20, shape)
    return values.astype(np.float32).astype(dtype)


def test_every_type_of_the_contract_has_a_numpy_type():
    known = {dtype_of(value) for value in pb.DataType.values() if value != pb.DATA_TYPE_UNSPECIFIED}
    assert len(known) == len(DTYPE_NAMES) == len(pb.DataType.values()) - 1


@pytest.mark.parametrize("shape", [(1,), (7,), (257, 3), (2, 5, 3), (1, 2, 1, 3, 1, 2)])
@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_round_trip_in_chunks(name, shape):
    array = _array(name, shape)
    spec = spec_of(array)
    receiver = Receiver([check_spec(spec, "h")])
    for part, offset, data in pieces([wire_view(array)], limit=5):
        receiver.add(part, offset, data)
    assert receiver.complete
    again = array_from(receiver.buffers[0], spec)
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_round_trip_inline_is_aligned_wherever_the_bytes_start(name):
    first, second = np.arange(3, dtype=np.int8), _array(name, (4, 3))
    specs = [spec_of(first, "a"), spec_of(second, "b")]
    receiver = Receiver(check_specs(specs, "tensors"))
    receiver.fill(b"".join([wire_view(first), wire_view(second)]))
    assert receiver.complete
    again = [array_from(buffer, spec) for buffer, spec in zip(receiver.buffers, specs, strict=True)]
    assert again[1].flags.aligned
    assert [x.tobytes() for x in again] == [first.tobytes(), second.tobytes()]


def test_views_travel_in_row_major_order():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (array.T, array[::2, ::-3], np.asfortranarray(array)):
        assert bytes(wire_view(view)) == view.tobytes()
    assert np.shares_memory(np.frombuffer(wire_view(array), np.uint8), array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), ">f4"),
        np.zeros((2, 2), np.float64),
        np.zeros((2, 2), np.complex64),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2), bool),
        np.zeros((2, 2), object),
        np.zeros((2, 2), "U3"),
        np.zeros((2, 2), "M8[s]"),
        np.zeros((2, 2), [("a", "f4")]),
    ],
    ids=lambda array: array.dtype.str,
)
def test_types_that_do_not_travel(array):
    with pytest.raises(WireError) as caught:
        spec_of(array)
    assert caught.value.field == "h.dtype"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (pb.TensorSpec(name="H", dtype=1, shape=[2]), "t.name"),
        (pb.TensorSpec(name="a" * 33, dtype=1, shape=[2]), "t.name"),
        (pb.TensorSpec(name="a\n", dtype=1, shape=[2]), "t.name"),
        (pb.TensorSpec(dtype=0, shape=[2]), "t.dtype"),
        (pb.TensorSpec(dtype=7, shape=[2]), "t.dtype"),
        (pb.TensorSpec(dtype=-1, shape=[2]), "t.dtype"),
        (pb.TensorSpec(dtype=1), "t.shape"),
        (pb.TensorSpec(dtype=1, shape=[1] * 7), "t.shape"),
        (pb.TensorSpec(dtype=1, shape=[3, 0]), "t.shape"),
        (pb.TensorSpec(dtype=1, shape=[3, -1]), "t.shape"),
        (pb.TensorSpec(dtype=1, shape=[-1, -1]), "t.shape"),
        (pb.TensorSpec(dtype=1, shape=[MAX_SIDE + 1]), "t.shape"),
        (pb.TensorSpec(dtype=1, shape=[2**63 - 1]), "t.shape"),
        (pb.TensorSpec(dtype=1, shape=[2**31 - 1] * 6), "t.shape"),
        (pb.TensorSpec(dtype=1, shape=[2**20, 2**20]), "t.shape"),
        (pb.TensorSpec(dtype=1, shape=[1025]), "t.shape"),
    ],
)
def test_hostile_specs(spec, field):
    with pytest.raises(WireError) as caught:
        check_spec(spec, "t", max_bytes=4096)
    assert caught.value.field == field


def test_limits_hold_for_the_sum_of_an_item():
    spec = pb.TensorSpec(dtype=1, shape=[600])
    pair = [spec, pb.TensorSpec(name="ctx", dtype=1, shape=[600])]
    assert check_specs([spec], "tensors", 4096) == [2400]
    with pytest.raises(WireError, match="limit is 4096"):
        check_specs(pair, "tensors", 4096)


def test_names_of_an_item_differ_and_empty_means_h():
    spec = pb.TensorSpec(dtype=1, shape=[6])
    with pytest.raises(WireError, match="same name"):
        check_specs([spec, pb.TensorSpec(name="h", dtype=1, shape=[6])], "tensors")
    many = [pb.TensorSpec(name=f"t{index}", dtype=1, shape=[1]) for index in range(9)]
    assert len(check_specs(many[:8], "tensors")) == 8
    with pytest.raises(WireError, match="at most 8"):
        check_specs(many, "tensors")


def test_data_type_names_the_field():
    with pytest.raises(WireError) as caught:
        data_type("float64", "output_dtype")
    assert caught.value.field == "output_dtype"


@pytest.mark.parametrize(
    ("part", "offset", "data"),
    [
        (0, 1, b"x"),  # a gap
        (0, 0, b""),
        (1, 0, b"x"),  # a later part first
        (7, 0, b"x"),
        (0, 0, b"12345"),  # beyond the part, though not beyond the item
        (0, 2**63, b"x"),
    ],
)
def test_receiver_refuses_the_first_chunk(part, offset, data):
    receiver = Receiver([4, 3])
    with pytest.raises(WireError):
        receiver.add(part, offset, data)
    assert not receiver.complete


def test_receiver_refuses_overlaps_and_what_comes_after_the_end():
    receiver = Receiver([4, 0, 3])
    receiver.add(0, 0, b"ab")
    with pytest.raises(WireError, match="expected part 0 at offset 2"):
        receiver.add(0, 0, b"ab")
    receiver.add(0, 2, b"cd")
    with pytest.raises(WireError, match="expected part 2 at offset 0"):
        receiver.add(1, 0, b"e")
    with pytest.raises(WireError, match="inline after"):
        receiver.fill(b"abcdefg")
    receiver.add(2, 0, b"efg")
    assert receiver.complete
    assert b"".join(buffer.tobytes() for buffer in receiver.buffers) == b"abcdefg"
    with pytest.raises(WireError, match="beyond the end"):
        receiver.add(2, 3, b"h")


@pytest.mark.parametrize("size", [0, 6, 8])
def test_receiver_refuses_inline_bytes_of_another_size(size):
    with pytest.raises(WireError, match="the item has 7 bytes"):
        Receiver([4, 3]).fill(bytes(size))


def test_receiver_allocates_nothing_before_the_first_byte():
    receiver = Receiver([1 << 62])
    with pytest.raises(WireError):
        receiver.add(0, 5, b"x")
    assert not receiver.complete


def test_an_item_without_bytes_is_complete():
    assert Receiver([]).complete
    assert Receiver([0, 0]).complete
    assert [len(buffer) for buffer in Receiver([0, 0]).buffers] == [0, 0]


def test_a_payload_is_the_bytes_that_came():
    receiver = PayloadReceiver(5)
    receiver.add(0, 0, b"ab")
    with pytest.raises(WireError, match="in order"):
        receiver.add(0, 3, b"de")
    with pytest.raises(WireError, match="has 5 bytes"):
        receiver.add(0, 2, b"cdef")
    assert not receiver.complete
    receiver.add(0, 2, b"cde")
    assert receiver.complete
    assert receiver.payload == b"abcde"
    whole = PayloadReceiver(5)
    whole.fill(b"fghij")
    assert whole.complete
    assert whole.payload == b"fghij"
    assert PayloadReceiver(0).payload == b""
