"""Real features through the real server and back, in every type and layout a user may have."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from conftest import BLOCK6, FINAL

from mpcompress_client import CodecMismatchError, CodedUnit, CompressionClient, UnknownCodecError
from mpcompress_client.local import EdgeCodec


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.square(a - b).mean() / a.var())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_float_type_comes_back_as_it_went(client, final, dtype):
    h = final[0].astype(dtype)
    unit = client.compress(h, codec=FINAL, qp=24)
    again = client.decompress(unit)
    assert again.dtype == h.dtype
    assert again.shape == h.shape
    assert nmse(h, again) < 0.05
    assert unit.nbytes < h.nbytes / 30
    assert again.flags.writeable


def test_smaller_qp_is_finer_and_larger(client, block6):
    units = [client.compress(block6[0], codec=BLOCK6, qp=qp) for qp in (12, 24, 24.125, 36)]
    errors = [nmse(block6[0], client.decompress(unit)) for unit in units]
    assert [unit.nbytes for unit in units] == sorted((unit.nbytes for unit in units), reverse=True)
    assert errors == sorted(errors)
    assert [unit.pstate["qp_eighths"] for unit in units] == [96, 192, 193, 288]


def test_layouts_are_the_same_numbers(client, final):
    whole = np.ascontiguousarray(final[0])
    expected = client.compress(whole, codec=FINAL)
    read_only = whole.copy()
    read_only.flags.writeable = False
    for same in (np.asfortranarray(whole), np.ascontiguousarray(whole[::-1])[::-1], read_only, {"h": whole}):
        assert client.compress(same, codec=FINAL) == expected


def test_batches_and_other_grids(client, final):
    unit = client.compress(final[:2], codec=FINAL, qp=24)
    assert client.decompress(unit).shape == (2, 257, 384)
    wide = client.compress(final[0], codec=FINAL, qp=24, token_res=(8, 32))
    assert wide.pstate["token_width"] == 32
    assert nmse(final[0], client.decompress(wide)) < 0.05
    cut = client.compress(final[0][:33], codec=FINAL, token_res=(4, 8), prefix_tokens=1)
    assert client.decompress(cut).shape == (33, 384)


def test_family_parameters(client, final):
    coarse, fine = (client.compress(final[0], codec=FINAL, prefix_qp_offset_eighths=x) for x in (0, -144))
    cls = [client.decompress(unit)[0] for unit in (coarse, fine)]
    assert nmse(final[0][0], cls[1]) < nmse(final[0][0], cls[0])


def test_an_item_larger_than_a_message(client, final):
    many = np.concatenate([final] * 10).astype(np.float32)  # 15 MiB, and more than 1 MiB as a unit at qp 0
    unit = client.compress(many, codec=FINAL, qp=0)
    assert len(unit.payload) > 1 << 20
    assert nmse(many, client.decompress(unit)) < 1e-3


def test_a_unit_in_every_form(client, final, tmp_path):
    unit = client.compress(final[0], codec=FINAL)
    path = tmp_path / "unit.mpc"
    unit.save(path)
    expected = client.decompress(unit)
    assert path.stat().st_size == unit.nbytes == len(unit.to_bytes())
    for form in (CodedUnit.load(path), unit.to_bytes(), bytearray(unit.to_bytes()), path, str(path)):
        np.testing.assert_array_equal(client.decompress(form), expected)


@pytest.mark.parametrize("dtype", ["float32", np.float16, "bfloat16", ml_dtypes.bfloat16])
def test_another_output_type(client, final, dtype):
    unit = client.compress(final[0], codec=FINAL)
    again = client.decompress(unit, dtype=dtype)
    assert again.dtype == np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert nmse(final[0], again) < 0.05


def test_the_report(client, final, block6):
    report = client.compress(final[0], codec=FINAL).report
    assert report.qp_eighths == 192
    assert not report.warnings
    foreign = client.compress(block6[0].astype(np.float32) * 50, codec=FINAL)
    assert foreign.report.warnings


def test_codecs_and_limits(client):
    infos = {info.id: info for info in client.codecs()}
    assert set(infos) == {BLOCK6, FINAL}
    info = infos[FINAL]
    assert (info.family, info.arithmetic, info.token_res, info.prefix_tokens) == ("klt", "exact", (16, 16), 1)
    assert info.available
    assert info.trained
    assert info.qp.minimum <= info.qp.default <= info.qp.maximum
    assert info.inputs[0].channels == 384
    assert set(info.inputs[0].dtypes) == {"float32", "float16", "bfloat16"}
    limits = client.limits()
    assert limits.max_item_bytes == 32 << 20
    assert limits.max_timeout_s >= client.timeout_s
    assert limits.server_version


def test_the_codec_file_codes_on_this_device_byte_for_byte(client, final, tmp_path):
    info = next(info for info in client.codecs() if info.id == FINAL)
    data = client.codec_file(FINAL, fingerprint=info.fingerprint)
    assert len(data) == info.codec_file_bytes
    path = tmp_path / "fetched.safetensors"
    path.write_bytes(data)
    edge = EdgeCodec.load(path)
    assert edge.info == info
    for arguments in ({"qp": 24}, {"qp": 30.125, "token_res": (8, 32)}, {"prefix_qp_offset_eighths": 0}):
        unit = client.compress(final[1], codec=FINAL, **arguments)
        assert edge.compress(final[1], **arguments).to_bytes() == unit.to_bytes()
        np.testing.assert_array_equal(edge.decompress(unit), client.decompress(unit))


def test_codec_files_that_are_not_there(client):
    with pytest.raises(UnknownCodecError):
        client.codec_file("nobody")
    with pytest.raises(CodecMismatchError):
        client.codec_file(FINAL, fingerprint=b"another!")


def test_threads_may_share_a_client(server, final):
    from concurrent.futures import ThreadPoolExecutor

    with CompressionClient(server) as client, ThreadPoolExecutor(4) as pool:
        units = list(pool.map(lambda index: client.compress(final[index % 4], codec=FINAL), range(16)))
    for index, unit in enumerate(units):
        assert unit == units[index % 4]
