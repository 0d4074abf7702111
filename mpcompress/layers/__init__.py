"""Torch building blocks shared by the neural codecs. Importing this package imports torch and compressai."""

from mpcompress.layers.convolutions import CheckerboardConv2d, conv, crop, deconv, pad_to_even
from mpcompress.layers.vit import VitBlock, vit_blocks

__all__ = ["CheckerboardConv2d", "VitBlock", "conv", "crop", "deconv", "pad_to_even", "vit_blocks"]
