"""The section on published and reproduced values, and the differences between their protocols."""

import math
from typing import Any

from pipeline.params.study import Published
from pipeline.report.page import code, table
from pipeline.report.study import Report
from pipeline.report.text import listed, stated

PLAIN = "fd"  # publications report the plain distance, with its bias
USUAL_SAMPLES = 50_000
UNCHECKED = "not checked"


def section(report: Report) -> dict[str, Any] | None:
    """The section's contents; None if the study file has no published values."""
    if not report.rows.published:
        return None
    lines = []
    for row in report.rows.published:
        nfe, ours = _ours(report, row)
        theirs, model = row.images, report.model(row.curve)
        trained = "imported" if model.import_ is not None else f"{model.own_images:,}"
        lines.append(
            [
                code(row.curve),
                *(row.what, row.source if row.checked else f"{row.source} ({UNCHECKED})"),
                *(row.nfe, _as_published(row.value), ours, nfe or ""),
                *(f"{theirs:,}" if theirs else "", trained, _protocol(report, row, nfe)),
            ]
        )
    header = ["curve", "published method", "source", "at NFE", "published FID", f"this study: {report.metric(PLAIN)}"]
    header += ["at NFE", "published training images", "training images here", "protocol"]
    return {"table": table(header, lines), "differs": _differs(report)}


def _as_published(value: float) -> str:
    """A value with two decimals, as usual for FID, or with more if it has more."""
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def _protocol(report: Report, row: Published, nfe: int | None) -> str:
    """How the published sampler begins, ends and counts, if this differs from the curve, which is measured at `nfe`."""
    curve = report.curves[row.curve].row
    pairs: list[tuple[str, object, object]] = [
        ("end", row.end or curve.end, curve.end),
        ("first step", row.first_step or curve.first_step, curve.first_step),
    ]
    if nfe:
        depth = report.depth(row.curve, report.steps(row.curve)[nfe], nfe)
        pairs += [("NFE", row.nfe, nfe), ("depth", row.depth or depth, depth)]
    return "; ".join(f"{key} {theirs}, here {ours}" for key, theirs, ours in pairs if theirs != ours) or "same protocol"


def _ours(report: Report, row: Published) -> tuple[int | None, str]:
    """The measured NFE nearest to the published one, or to `our_nfe`, and the value there, or "not measured"."""
    points, wanted = report.points(row.curve, PLAIN), row.our_nfe or row.nfe
    if not points:
        return None, "not measured"
    nfe = min(points, key=lambda own: (abs(math.log(own / wanted)), own))
    return nfe, report.linked(stated(points[nfe]), row.curve, nfe, PLAIN)


def _differs(report: Report) -> list[str]:
    """Sentences on the differences between the published and this study's protocols."""
    models = [report.model(row.curve) for row in report.rows.published]
    trained = {model.own_images for model in models if model.import_ is None}
    ours = f"were trained on {_range(trained)} images" if trained else "are imported"
    theirs = {row.images for row in report.rows.published if row.images}
    scale = f" This is preset {report.rows.preset} of the study." if report.rows.preset else ""
    published = f", published networks on {_range(theirs)}, where known" if theirs else ""
    found = [f"Training: our networks {ours}{published}.{scale}"]
    if any(row.our_nfe for row in report.rows.published):
        found.append(
            "Evaluations: some published samplers stop at their lowest noise level, and ours go on to 0. So ours need "
            "one evaluation more for the same noise levels."
        )
    if not all(row.checked for row in report.rows.published):
        found.append(f'Sources: nobody has compared values marked "{UNCHECKED}" with the text of their source yet.')
    metric, samples = report.metric(PLAIN), f"{report.rows.samples:,} samples"
    if not report.extractor["official"]:
        found.append(
            f"Metric: published values are FIDs, ours are {metric} of {samples}. Their scales differ, so only the "
            "order of the rows is comparable."
        )
    elif report.rows.samples < USUAL_SAMPLES:
        found.append(
            f"Metric: both are plain FIDs, ours of {samples}, published ones usually of {USUAL_SAMPLES:,}. With fewer "
            "samples, a plain FID is larger."
        )
    data = report.rows.named_data
    if not data.built_in:
        lossy = report.data.get("lossy")
        stored = f", which was {lossy}-compressed" if lossy else ""
        found.append(
            f"Data: ours are {data.source}{stored}. Published values use the original pixels of the data set. Lossy "
            "compression changes the images and therefore all distances from them."
        )
    if data.limit:
        found.append(f"Data: ours are only the first {data.limit:,} images.")
    if held := report.data.get("heldout"):
        found.append(
            f"Data: our networks were trained on {report.data['count']:,} images and are compared with these, because "
            f"{held:,} are held out."
        )
    return found


def _range(counts: set[int]) -> str:
    return listed([f"{count:,}" for count in sorted(counts)]) if len(counts) < 3 else _ends(counts)


def _ends(counts: set[int]) -> str:
    return f"{min(counts):,} to {max(counts):,}"
