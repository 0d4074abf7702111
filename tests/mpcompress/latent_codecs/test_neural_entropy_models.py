"""The entropy models give CompressAI's strings and values, and follow their tables."""

import copy
import pickle

import pytest
import torch

from mpcompress.errors import CodecFileError, CorruptBitstreamError, InvalidInputError
from mpcompress.latent_codecs import _entropy_models
from mpcompress.latent_codecs._entropy_models import (
    StreamEntropyBottleneck,
    StreamGaussianConditional,
    use_stream_coder,
)
from mpcompress.layers._compressai import EntropyBottleneck, GaussianConditional, get_scale_table


@pytest.fixture
def gaussians():
    """Theirs and ours, with the same tables."""
    models = GaussianConditional(None), StreamGaussianConditional(None)
    for model in models:
        model.update_scale_table(get_scale_table())
    return models


@pytest.fixture
def bottlenecks():
    torch.manual_seed(0)
    theirs = EntropyBottleneck(6)
    ours = StreamEntropyBottleneck(6)
    ours.load_state_dict(theirs.state_dict())
    for model in (theirs, ours):
        model.quantiles.data[:, 0] += torch.rand(6, 1, generator=torch.Generator().manual_seed(1))
        model.update()
    return theirs, ours


@pytest.mark.parametrize("shape", [(1, 4, 3, 5), (3, 4, 1, 1), (2, 7)])
@pytest.mark.parametrize("spread", [0.3, 8.0, 5000.0])
def test_gaussian_equals_compressai(gaussians, shape, spread):
    theirs, ours = gaussians
    torch.manual_seed(2)
    y, means, scales = spread * torch.randn(shape), torch.randn(shape), 20 * torch.rand(shape) - 2
    indexes = theirs.build_indexes(scales)
    assert torch.equal(ours.build_indexes(scales), indexes)
    for mean in (means, None):
        strings, y_hat = ours.encode(y, indexes, mean)
        assert strings == theirs.compress(y, indexes, mean)
        assert torch.equal(y_hat, theirs.decompress(strings, indexes, means=mean))
        assert torch.equal(ours.decompress(strings, indexes, means=mean), y_hat)


def test_indexes_on_the_very_steps_of_the_scale_table(gaussians):
    theirs, ours = gaussians
    steps = ours.scale_table
    scales = torch.cat((steps, steps.nextafter(torch.tensor(0.0)), steps.nextafter(torch.tensor(1e9)), -steps))[None]
    assert torch.equal(ours.build_indexes(scales), theirs.build_indexes(scales))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 2, 64, 1100])
def test_scales_find_the_rows_of_their_indexes(dtype, size):
    ours = StreamGaussianConditional(None)
    ours.update_scale_table(torch.logspace(-1, 1, size))
    ours.to(dtype)
    steps = ours.scale_table
    zero, large = steps.new_tensor(0.0), steps.new_tensor(1e9)
    special = steps.new_tensor([-1.0, 0.0, 1e30, torch.inf, -torch.inf, torch.nan])
    scales = torch.cat((steps, steps.nextafter(zero), steps.nextafter(large), -steps, special))[None]
    indexes = ours.build_indexes(scales)
    torch.manual_seed(3)
    y, means = 4 * torch.randn(scales.shape, dtype=dtype), torch.randn(scales.shape, dtype=dtype)
    for mean in (means, None):
        strings, y_hat = ours.encode_scaled(y, scales, mean)
        assert strings == ours.compress(y, indexes, mean)
        assert y_hat.dtype == dtype
        assert torch.equal(ours.decode_scaled(strings, scales, mean), y_hat)
        assert torch.equal(ours.decompress(strings, indexes, dtype, mean), y_hat)


def test_more_scales_than_tables_are_refused(gaussians):
    _, ours = gaussians
    ours.scale_table = torch.cat((ours.scale_table, ours.scale_table[-1:] * 2))
    with pytest.raises(CodecFileError, match="64 tables for 65 scales"):
        ours.encode_scaled(torch.zeros(1, 2), torch.full((1, 2), 1e9), None)


@pytest.mark.parametrize("spread", [2.0, 300.0])
def test_bottleneck_equals_compressai(bottlenecks, spread):
    theirs, ours = bottlenecks
    z = spread * torch.randn(2, 6, 3, 2)
    strings, z_hat = ours.encode(z)
    assert strings == theirs.compress(z)
    assert torch.equal(z_hat, theirs.decompress(strings, (3, 2)))
    assert torch.equal(ours.decompress(strings, (3, 2)), z_hat)


def test_tables_follow_update_loading_and_device_moves(bottlenecks):
    _, ours = bottlenecks
    z = 3 * torch.randn(1, 6, 2, 2)
    first = ours.compress(z)
    ours.biases[4].data += 1.5
    assert ours.compress(z) == first  # no update yet
    ours.update(force=True)
    second = ours.compress(z)
    assert second != first
    twin = StreamEntropyBottleneck(6)
    twin.update()
    twin.load_state_dict(ours.state_dict())  # in place, into tensors of the same size
    assert twin.compress(z) == second
    assert ours.to(torch.float64).to(torch.float32).compress(z) == second


def test_models_with_the_same_tables_share_them(gaussians):
    _, first = gaussians
    second, third = StreamGaussianConditional(None), StreamGaussianConditional(None)
    second.update_scale_table(get_scale_table())
    third.update_scale_table(get_scale_table(levels=63))
    tables = [_entropy_models._cached(model).tables for model in (first, second, third)]
    assert tables[0] is tables[1]
    assert tables[0] is not tables[2]
    second._offset -= 1
    assert _entropy_models._cached(second).tables is not tables[0]
    assert _entropy_models._cached(first).tables is tables[0]


def test_copies_and_pickles_leave_the_cache_behind(bottlenecks):
    _, ours = bottlenecks
    z = torch.randn(1, 6, 2, 2)
    strings = ours.compress(z)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert "_table_cache" not in twin.__dict__
        assert type(twin) is StreamEntropyBottleneck
        assert twin.compress(z) == strings


def test_given_models_change_in_place(bottlenecks):
    theirs, _ = bottlenecks
    use_stream_coder(torch.nn.ModuleList([theirs]))
    assert type(theirs) is StreamEntropyBottleneck


def test_models_without_a_stream_coder_are_refused():
    class Other(EntropyBottleneck):
        pass

    with pytest.raises(InvalidInputError, match="Other"):
        use_stream_coder(torch.nn.ModuleDict({"a": Other(2)}))


def test_wrong_counts_and_types(gaussians):
    _, ours = gaussians
    y = torch.zeros(2, 3)
    indexes = torch.zeros(2, 3, dtype=torch.int32)
    strings = ours.compress(y, indexes)
    with pytest.raises(InvalidInputError):
        ours.compress(y, indexes[:, :2])
    for scales in (y[:, :2], y[:1], y[0]):
        with pytest.raises(InvalidInputError):
            ours.encode_scaled(y, scales, None)
    with pytest.raises(InvalidInputError):
        ours.decode_scaled(strings[:1], y, None)
    with pytest.raises(InvalidInputError):
        ours.decompress(strings[:1], indexes)
    with pytest.raises(InvalidInputError):
        ours.decompress([1, 2], indexes)
    with pytest.raises(CorruptBitstreamError):
        ours.decompress([strings[0], strings[1] + bytes(4)], indexes)
