"""Exact coding: entropy parameters in fixed point, so that a bitstream decodes alike on every machine."""
