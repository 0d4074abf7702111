import importlib.util
import subprocess
import sys

import pytest

if any(importlib.util.find_spec(name) is None for name in ("torch", "compressai")):
    pytest.skip("needs torch and compressai", allow_module_level=True)

import torch

from mpcompress.errors import InvalidInputError
from mpcompress.layers import CheckerboardConv2d, VitBlock, crop, pad_to_even
from mpcompress.layers._compressai import CheckerboardMaskedConv2d
from mpcompress.layers.vit import map_to_tokens, tokens_to_map


def test_compressai_imports_beside_any_build_of_torch():
    code = "import mpcompress.layers._compressai; import compressai, torchvision; print(compressai.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_vit_block_is_the_textbooks():
    torch.manual_seed(0)
    block, x = VitBlock(128).double(), torch.randn(2, 7, 128, dtype=torch.float64)
    heads, head_dim = 2, 64
    qkv = block.norm1(x) @ block.attn.qkv.weight.T
    query, key, value = (part.reshape(2, 7, heads, head_dim).transpose(1, 2) for part in qkv.split(128, dim=-1))
    weights = torch.softmax(query @ key.transpose(-1, -2) / head_dim**0.5, dim=-1)
    y = x + block.attn.proj((weights @ value).transpose(1, 2).reshape(2, 7, 128))
    hidden = block.mlp.fc1(block.norm2(y))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(block(x), y + block.mlp.fc2(hidden), atol=1e-12, rtol=0)
    assert block.norm1.eps == 1e-5


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(InvalidInputError, match="200"):
        VitBlock(200)


def test_tokens_and_maps_are_row_major():
    tokens = torch.arange(2 * 6 * 3.0).reshape(2, 6, 3)
    feature_map = tokens_to_map(tokens, (2, 3))
    assert torch.equal(feature_map[1, :, 1, 2], tokens[1, 5])
    prefix = torch.full((2, 3), -1.0)
    back = map_to_tokens(feature_map, prefix)
    assert torch.equal(back[:, 2:], tokens)
    assert torch.equal(back[:, :2], prefix.expand(2, 2, 3))


def test_checkerboard_convolution_equals_compressais_and_keeps_its_weights():
    torch.manual_seed(0)
    theirs = CheckerboardMaskedConv2d(3, 4, kernel_size=5, stride=1, padding=2)
    ours = CheckerboardConv2d(3, 4, kernel_size=5, stride=1, padding=2)
    ours.load_state_dict(theirs.state_dict())
    before = ours.weight.detach().clone()
    x = torch.randn(2, 3, 6, 7)
    torch.testing.assert_close(ours(x), theirs(x))
    assert torch.equal(ours.weight, before)
    ours(x).sum().backward()
    assert not ours.weight.grad[ours.mask == 0].any()
    board = torch.zeros(1, 3, 6, 7)
    board[..., ::2, ::2] = 1
    board[..., 1::2, 1::2] = 1
    seen = ours(board) - ours.bias[:, None, None]
    assert not seen[..., board[0, 0] == 1].any()  # a square sees only the other colour


@pytest.mark.parametrize(("size", "even"), [((3, 4), (4, 4)), ((5, 7), (6, 8)), ((2, 2), (2, 2)), ((1, 1), (2, 2))])
def test_padding_to_even_sides(size, even):
    x = torch.ones(1, 2, *size)
    padded = pad_to_even(x)
    assert padded.shape[-2:] == even
    assert torch.equal(crop(padded, size), x)
    assert padded.sum() == x.sum()
