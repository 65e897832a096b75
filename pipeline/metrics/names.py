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


def label(metric: str, extractor: str, official: bool) -> str:
    """The label of a metric, a key of LABELS. extractor: its name; official: whether its scores may be called FID."""
    return LABELS[metric][0 if official else 1].format(extractor)


def headline(extractor: str) -> str:
    """The metric of a study's headline figures and comparisons, from its extractor's name."""
    return "w2" if extractor == COORDINATES else "fd_corrected"
