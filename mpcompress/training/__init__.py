"""Trains the documented neural codecs on the user's own features: `train(TrainingConfig(...), features)`."""

from __future__ import annotations

from mpcompress.training.config import TrainingConfig
from mpcompress.training.report import RatePoint, TrainingReport, TrainingResult
from mpcompress.training.trainer import train

__all__ = ["RatePoint", "TrainingConfig", "TrainingReport", "TrainingResult", "train"]
