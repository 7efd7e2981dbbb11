"""Predictions that a model could have made, for tests of reports."""

import numpy as np

from reszoo import metrics


def answers(classes: int, images: int) -> tuple[metrics.Targets, metrics.Probabilities]:
    """Targets, and probabilities of a model whose accuracy is a little over half."""
    draw = np.random.default_rng(0)
    targets = draw.integers(0, classes, images)
    logits = draw.normal(0, 1, (images, classes))
    logits[np.arange(images), targets] += 1.8
    odds = np.exp(logits)
    return targets, (odds / odds.sum(1, keepdims=True)).astype(np.float32)
