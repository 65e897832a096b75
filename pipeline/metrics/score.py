"""The Inception score, from the logits of a classifier."""

import math

import torch
from torch import Tensor

from pipeline.common.errors import StudyError
from pipeline.metrics.estimate import Estimate, mean_estimate

SPLITS = 10  # Salimans et al. 2016


def inception_score(logits: Tensor) -> Estimate:
    """exp E KL(p(y|x) || p(y)) of logits (n, classes): mean and standard error over ten splits.

    (Salimans et al. 2016, arXiv 1606.03498.) Raises StudyError for fewer than ten samples.
    """
    if len(logits) < SPLITS:
        raise StudyError(f"{len(logits)} samples are too few for the score's {SPLITS} splits")
    log_p = logits.double().log_softmax(1)
    scores = []
    for i in range(SPLITS):
        part = log_p[i * len(logits) // SPLITS : (i + 1) * len(logits) // SPLITS]
        divergence = part.exp() * (part - part.logsumexp(0) + math.log(len(part)))
        scores.append(float(divergence.sum(1).mean().exp()))
    return mean_estimate(torch.tensor(scores, dtype=torch.float64))
