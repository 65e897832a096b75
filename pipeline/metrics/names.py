"""Names of metrics in reports. Only features of the official Inception network make a FID."""

COORDINATES = "coordinates"  # the extractor of points, whose features are the points themselves

LABELS = {  # metric: (with the official network, with any other extractor)
    "w2": ("2-Wasserstein distance", "2-Wasserstein distance"),
    "sliced_w2": ("sliced 2-Wasserstein distance", "sliced 2-Wasserstein distance"),
    "fd": ("FID", "FD ({})"),
    "fd_corrected": ("bias-corrected FID", "bias-corrected FD ({})"),
    "fd_infinity": ("FID at infinite samples", "FD ({}) at infinite samples"),
    "kd": ("KID", "KD ({})"),
    "score": ("Inception score", "IS ({})"),
    "precision": ("precision", "precision ({})"),
    "recall": ("recall", "recall ({})"),
    "density": ("density", "density ({})"),
    "coverage": ("coverage", "coverage ({})"),
    "near_duplicates": ("near-duplicates", "near-duplicates ({})"),
}


TRAIN, HELDOUT, MATCHED, GAP = "train", "heldout", "matched", "gap"
REFERENCES = {  # what a metric is measured against, besides all training data
    HELDOUT: "held-out data",
    MATCHED: "as many training data",
    GAP: "held-out minus training data",
}


def against(reference: str, metric: str) -> str:
    """The name of a metric, a key of LABELS, that is measured against TRAIN or one of REFERENCES."""
    return metric if reference == TRAIN else f"{reference}_{metric}"


def split(metric: str) -> tuple[str, str]:
    """The inverse of `against`: the reference and the key of LABELS."""
    reference, _, own = metric.partition("_")
    return (reference, own) if reference in REFERENCES else (TRAIN, metric)


def label(metric: str, extractor: str, official: bool) -> str:
    """The label of a metric from `against`. extractor: its name; official: whether its scores may be called FID."""
    reference, own = split(metric)
    text = LABELS[own][0 if official else 1].format(extractor)
    return text if reference == TRAIN else f"{text}, {REFERENCES[reference]}"


def headline(extractor: str) -> str:
    """The metric of a study's headline figures and comparisons, from its extractor's name."""
    return "w2" if extractor == COORDINATES else "fd_corrected"
