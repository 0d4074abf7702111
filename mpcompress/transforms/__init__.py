"""Codecs that are calibrated, not trained: numpy and numba, no torch."""
