"""Any batch, any token grid, any number of prefix tokens, for both ViT codecs."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

GRIDS = [
    (1, 1),
    (1, 2),
    (2, 1),
    (1, 5),
    (1, 9),
    (7, 1),
    (3, 3),
    (5, 6),
    (9, 10),
    (10, 10),
    (14, 14),
    (13, 17),
    (37, 37),
]


@pytest.fixture(params=["vit_union", "vit_union_ctx"])
def codec(request):
    return request.getfixturevalue(request.param)


def inputs(codec, grid, batch=1, seed=0):
    """h, and ctx where the codec takes one, large enough that symbols of both signs occur."""
    torch.manual_seed(seed)
    h = 2 * torch.randn(batch, codec.num_prefix_tokens + grid[0] * grid[1], codec.h_dim)
    ctx_dim = getattr(codec, "ctx_dim", 0)
    return (h, torch.randn(batch, ctx_dim, *grid)) if ctx_dim else (h,)


def singles(out, batch):
    """The strings of each sample of a batch."""
    return [
        {key: [[row[b]] for row in rows] for key, rows in out["strings"].items()} for b in range(batch)
    ]  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid)))
def test_any_grid_comes_back_as_the_grid_it_was(codec, grid):
    h, *ctx = inputs(codec, grid)
    out = codec.compress(h, *ctx, grid)
    decoded = codec.decompress(out["strings"], out["pstate"], *ctx)
    assert decoded["h_hat"].shape == h.shape
    if ctx:
        assert decoded["h_hat_share"].shape == (1, codec.h_dim, *grid)
    # The coded latent is the one that eval-mode forward computes: nothing was lost or moved on the way. Their products
    # are summed in another order, so on some machine a symbol may round the other way.
    with torch.no_grad():
        forward = codec(h, *ctx, grid)
    assert (decoded["h_hat"] - forward["h_hat"]).abs().mean() < 0.01 * forward["h_hat"].std()
    assert forward["likelihoods"]["y"].shape[-2:] == tuple(-(-side // 2) for side in grid)


@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (14, 14)], ids=str)
def test_a_batch_gives_the_strings_and_features_of_single_calls(codec, grid):
    batch = 3
    h, *ctx = inputs(codec, grid, batch, seed=1)
    out = codec.compress(h, *ctx, grid)
    decoded = codec.decompress(out["strings"], out["pstate"], *ctx)
    for b, strings in enumerate(singles(out, batch)):
        part = [x[b : b + 1] for x in (h, *ctx)]
        alone = codec.compress(*part, grid)
        assert alone["strings"] == strings
        assert alone["pstate"] == out["pstate"]
        single = codec.decompress(strings, out["pstate"], *part[1:])
        torch.testing.assert_close(single["h_hat"], decoded["h_hat"][b : b + 1], atol=1e-4, rtol=0)
    assert torch.unique(decoded["h_hat"][:, -1], dim=0).shape[0] == batch


def test_a_large_batch_goes_through_in_parts(codec, monkeypatch):
    grid, batch = (5, 7), 5
    h, *ctx = inputs(codec, grid, batch, seed=2)
    expected = codec.compress(h, *ctx, grid)
    h_hat = codec.decompress(expected["strings"], expected["pstate"], *ctx)["h_hat"]
    monkeypatch.setattr("mpcompress.latent_codecs._vit_base._POSITIONS", 25)  # two samples
    assert codec.compress(h, *ctx, grid)["strings"] == expected["strings"]
    assert torch.equal(codec.decompress(expected["strings"], expected["pstate"], *ctx)["h_hat"], h_hat)


def test_compress_decodes_nothing(codec, monkeypatch):
    h, *ctx = inputs(codec, (4, 4))
    expected = codec.compress(h, *ctx, (4, 4))["strings"]

    def forbidden(*args, **kwargs):
        raise AssertionError("decoded while coding")

    for name in ("decode_rows", "decode_many"):
        monkeypatch.setattr(f"mpcompress.latent_codecs._entropy_models.{name}", forbidden)
    assert codec.compress(h, *ctx, (4, 4))["strings"] == expected


def test_the_cost_is_paid_for_real_positions_only(codec):
    """An odd grid costs no more than the even grid that contains it, and its likelihoods cover its latent alone."""
    h, *ctx = inputs(codec, (12, 12))
    full = codec.compress(h, *ctx, (12, 12))
    patches = h[:, codec.num_prefix_tokens :].reshape(1, 12, 12, -1)[:, :9, :9].flatten(1, 2)
    odd = torch.cat((h[:, : codec.num_prefix_tokens], patches), dim=1)
    small = codec.compress(odd, *(c[..., :9, :9] for c in ctx), (9, 9))
    sizes = [sum(len(row[0]) for row in out["strings"]["y"]) for out in (full, small)]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("prefix", [0, 1, 4])
@pytest.mark.parametrize("name", ["vit_union_a", "vit_union_ctx"])
def test_any_number_of_prefix_tokens(golden, name, prefix):
    codec = golden(name).model(num_prefix_tokens=prefix)
    h, *ctx = inputs(codec, (6, 5))
    out = codec.compress(h, *ctx, (6, 5))
    assert codec.decompress(out["strings"], out["pstate"], *ctx)["h_hat"].shape == (1, prefix + 30, codec.h_dim)


def test_shapes_survive_a_file_format(codec):
    """Lists where tuples and torch.Size were decode to the same."""
    h, *ctx = inputs(codec, (5, 6))
    out = codec.compress(h, *ctx, [5, 6])
    pstate = {key: list(value) for key, value in out["pstate"].items()}
    pstate["y_shape"] = [list(shape) for shape in pstate["y_shape"]]
    expected = codec.decompress(out["strings"], out["pstate"], *ctx)["h_hat"]
    assert torch.equal(codec.decompress(out["strings"], pstate, *ctx)["h_hat"], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_inputs_of_another_float_type_are_converted(codec, dtype):
    h, *ctx = (x.to(dtype) for x in inputs(codec, (4, 4)))
    expected = codec.compress(h.float(), *(c.float() for c in ctx), (4, 4))
    assert codec.compress(h, *ctx, (4, 4))["strings"] == expected["strings"]
    assert codec(h, *ctx, (4, 4))["h_hat"].dtype == torch.float32


def test_autocast_changes_no_string(codec):
    h, *ctx = inputs(codec, (6, 6))
    plain = codec.compress(h, *ctx, (6, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = codec.compress(h, *ctx, (6, 6))
        decoded = codec.decompress(out["strings"], out["pstate"], *ctx)
    assert out["strings"] == plain["strings"]
    assert decoded["h_hat"].dtype == torch.float32


def test_a_copy_and_inference_mode_code_the_same(codec):
    h, *ctx = inputs(codec, (4, 6))
    out = codec.compress(h, *ctx, (4, 6))
    twin = copy.deepcopy(codec)
    with torch.inference_mode():
        assert twin.compress(h, *ctx, (4, 6))["strings"] == out["strings"]
        twin.decompress(out["strings"], out["pstate"], *ctx)
    # Weights are still trainable afterwards: inference mode left nothing of itself in them.
    twin.train()
    twin(h, *ctx, (4, 6))["h_hat"].sum().backward()


def test_coding_does_not_track_gradients(codec):
    h, *ctx = inputs(codec, (4, 4))
    out = codec.compress(h.requires_grad_(), *ctx, (4, 4))
    assert not codec.decompress(out["strings"], out["pstate"], *ctx)["h_hat"].requires_grad


def test_memory_layout_changes_no_string(codec):
    """Summation order in math libraries follows alignment and strides; the codec's does not."""
    h, *ctx = inputs(codec, (6, 7))
    expected = codec.compress(h, *ctx, (6, 7))["strings"]
    odd = torch.empty(h.numel() + 1)[1:].view(h.shape).copy_(h)
    swapped = h.transpose(1, 2).contiguous().transpose(1, 2)
    last = [c.contiguous(memory_format=torch.channels_last) for c in ctx]
    for other in (odd, swapped):
        assert codec.compress(other, *last, (6, 7))["strings"] == expected


def test_threads_may_share_a_codec(codec):
    jobs = [inputs(codec, (5, 4), seed=seed) for seed in range(8)]
    expected = [codec.compress(*job, (5, 4)) for job in jobs]
    fresh = copy.deepcopy(codec)  # its tables are built by whichever thread comes first

    def round_trip(job):
        out = fresh.compress(*job, (5, 4))
        return out["strings"], fresh.decompress(out["strings"], out["pstate"], *job[1:])["h_hat"]

    with ThreadPoolExecutor(4) as pool:
        for (strings, h_hat), out, job in zip(pool.map(round_trip, jobs), expected, jobs, strict=True):
            assert strings == out["strings"]
            assert torch.equal(h_hat, codec.decompress(out["strings"], out["pstate"], *job[1:])["h_hat"])
