"""Networks over a batch give every sample what a call of its own gives, and stay visible to those who watch them."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mpcompress.latent_codecs import _module
from mpcompress.latent_codecs._alone import each_alone, run_alone, single_samples


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(5, 7, 3, padding=1),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(7, 300, 1), nn.ReLU(inplace=True), nn.Conv2d(300, 4, 1)),
        nn.ConvTranspose2d(4, 3, 2),
    )


@torch.no_grad()
def test_a_batch_gives_what_single_calls_give():
    net, x = network(), torch.randn(4, 5, 6, 9)
    before = x.clone()
    out = each_alone(net, x)
    assert torch.equal(out, torch.cat([each_alone(net, sample) for (sample,) in single_samples(x)]))
    torch.testing.assert_close(out, net(x))
    assert torch.equal(x, before)
    # Also where a network begins with a layer that overwrites its input.
    assert torch.equal(each_alone(nn.ReLU(inplace=True), x), x.relu())
    assert torch.equal(x, before)


@torch.no_grad()
def test_networks_of_several_tensors():
    class Sum(nn.Module):
        def forward(self, x, y):
            assert x.shape[0] == 1
            return x + y

    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(each_alone(Sum(), x, y), x + y)


@torch.no_grad()
@pytest.mark.parametrize("watched", [(), (0,), (2,), (2, 0), (1,)], ids=str)
def test_hooks_see_every_sample(watched):
    net, x, seen = network(), torch.randn(3, 5, 6, 9), []
    module = net
    for index in watched:
        module = module[index]
    expected = each_alone(net, x)
    handle = module.register_forward_hook(lambda module, args, output: seen.append(output.shape[0]))
    torch.testing.assert_close(each_alone(net, x), expected)
    assert seen == [1, 1, 1]
    handle.remove()


@torch.no_grad()
def test_threads_do_not_change_a_pointwise_layer():
    layer, x = nn.Conv2d(448, 384, 1).eval(), torch.randn(1, 448, 1, 181)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results += run_alone(layer, [(x,)])
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], layer(x))
    assert torch.equal(*results)


def test_coding_on_a_gpu_switches_tf32_off(monkeypatch):
    monkeypatch.setattr(_module, "full_precision", lambda x: contextlib.nullcontext())
    flags = torch.backends.cudnn
    monkeypatch.setattr(flags, "allow_tf32", True)
    monkeypatch.setattr(flags, "benchmark", True)
    monkeypatch.setattr(flags, "deterministic", False)
    gpu = SimpleNamespace(device=torch.device("cuda"))

    def switches():
        return flags.allow_tf32, flags.benchmark, flags.deterministic

    first, second = _module.coding_arithmetic(gpu), _module.coding_arithmetic(gpu)
    first.__enter__()
    second.__enter__()
    assert switches() == (False, False, True)
    first.__exit__(None, None, None)  # as of a thread that is done before another
    assert switches() == (False, False, True)
    second.__exit__(None, None, None)
    assert switches() == (True, True, False)
    with pytest.raises(ZeroDivisionError), _module.coding_arithmetic(gpu):
        raise ZeroDivisionError
    assert switches() == (True, True, False)
