"""The report's table of published values beside what this study measured, and what differs between the two."""

import math
from typing import Any

from pipeline.params.study import Published
from pipeline.report.page import code, table
from pipeline.report.study import Report
from pipeline.report.text import listed, stated

PLAIN = "fd"  # as published: the plain distance, with its bias
USUAL_SAMPLES = 50_000


def section(report: Report) -> dict[str, Any] | None:
    """All that the template shows of published values; None where the study file has none."""
    if not report.rows.published:
        return None
    lines = []
    for row in report.rows.published:
        nfe, ours = _ours(report, row)
        theirs, trained = row.images, report.model(row.curve).images
        lines.append(
            [
                code(row.curve),
                *(row.what, row.source, row.nfe, _as_published(row.value), ours, nfe),
                *(f"{theirs:,}" if theirs else "", f"{trained:,}"),
            ]
        )
    header = ["curve", "published", "source", "at NFE", "FID", f"here: {report.metric(PLAIN)}", "at NFE"]
    return {"table": table([*header, "their images", "ours"], lines), "differs": _differs(report)}


def _as_published(value: float) -> str:
    """With two digits behind the point, as FIDs are stated, or with more where there are more."""
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def _ours(report: Report, row: Published) -> tuple[object, str]:
    """The NFE measured that is nearest to a published one, and what the curve has there; where it has nothing, why."""
    points = report.points(row.curve, PLAIN)
    if not points:
        return "", "not measured"
    nfe = min(points, key=lambda own: (abs(math.log(own / row.nfe)), own))
    return nfe, report.linked(stated(points[nfe]), row.curve, nfe, PLAIN)


def _differs(report: Report) -> list[str]:
    """What has to be known before the two are compared, in sentences."""
    ours = _range({report.model(row.curve).images for row in report.rows.published})
    theirs = {row.images for row in report.rows.published if row.images}
    scale = f" It is the study's preset {report.rows.preset}." if report.rows.preset else ""
    told = f", the published ones, where it is known, on {_range(theirs)}" if theirs else ""
    found = [f"Training: networks here were trained on {ours} images{told}.{scale}"]
    metric, samples = report.metric(PLAIN), f"{report.rows.samples:,} samples"
    if not report.extractor["official"]:
        found.append(
            f"Metric: published values are FIDs, ours are {metric} of {samples}: numbers on two scales, of which only "
            "the order of the rows can be compared."
        )
    elif report.rows.samples < USUAL_SAMPLES:
        found.append(
            f"Metric: both are plain FIDs, ours of {samples}, the published ones as a rule of {USUAL_SAMPLES:,}; with "
            "fewer samples a plain FID is larger."
        )
    data = report.rows.named_data
    if not data.built_in:
        lossy = report.data.get("lossy")
        stored = f", which had been {lossy}-compressed" if lossy else ""
        found.append(
            f"Data: ours are {data.source}{stored}. Published values are against the data set's own pixels; copies "
            "that were ever compressed with losses are other images, and distances from them are other distances."
        )
    if data.limit:
        found.append(f"Data: ours are the first {data.limit:,} images alone.")
    return found


def _range(counts: set[int]) -> str:
    return listed([f"{count:,}" for count in sorted(counts)]) if len(counts) < 3 else _ends(counts)


def _ends(counts: set[int]) -> str:
    return f"{min(counts):,} to {max(counts):,}"
