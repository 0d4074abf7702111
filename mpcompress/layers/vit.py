"""Transformer blocks as in ViT (Dosovitskiy et al. 2021, arXiv 2010.11929), pre-norm, without positional encoding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpcompress.errors import InvalidInputError

_HEAD_DIM = 64
_MLP_RATIO = 4


class Attention(nn.Module):
    """Multi-head self-attention; `qkv` has no bias, `proj` has one."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise InvalidInputError(f"{dim} channels do not split into {num_heads} attention heads", field="h_dim")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        B, L, C = x.shape
        qkv = self.qkv(x).reshape(B, L, 3, self.num_heads, C // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(B, L, C))
        return out


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class VitBlock(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``: heads of 64 channels, hidden width 4 x `dim`.

    Args:
        dim: Channels of a token. From 64 on, `dim` // 64 heads must divide it; below 64 there is one head.

    Raises:
        InvalidInputError: `dim` does not split into its heads.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = Attention(dim, max(1, dim // _HEAD_DIM))
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, _MLP_RATIO * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def vit_blocks(dim: int, depth: int) -> nn.Sequential:
    """`depth` blocks in a row."""
    return nn.Sequential(*(VitBlock(dim) for _ in range(depth)))


def tokens_to_map(tokens: Tensor, token_res: tuple[int, int]) -> Tensor:
    """(B, H*W, C) tokens in row-major order to a (B, C, H, W) map."""
    B, _, C = tokens.shape
    return tokens.transpose(1, 2).reshape(B, C, *token_res)


def map_to_tokens(feature_map: Tensor, prefix: Tensor) -> Tensor:
    """(B, C, H, W) map to (B, P + H*W, C) tokens, the (P, C) `prefix` in front of each sample's."""
    tokens = feature_map.flatten(2).transpose(1, 2)
    return torch.cat((prefix.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens), dim=1)
