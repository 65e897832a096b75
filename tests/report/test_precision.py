"""The section on the precision of comparisons."""

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.files import Paths
from pipeline.report.page import unmarked
from pipeline.report.sections.precision import exponent, finding, ratio_of_variances, section
from pipeline.report.study import Report


def test_the_exponent_is_that_within_groups() -> None:
    """Standard deviations in proportion to mean^0.7, with another factor in each group."""
    means = np.array([1.0, 2.0, 5.0, 9.0])
    points = [(means * k, (k * 0.1 * means**0.7) ** 2) for k in (1.0, 100.0)]
    assert exponent(points) == pytest.approx(0.7)
    assert math.isnan(exponent([(means[:2], means[:2])]))
    assert exponent([(np.append(means, -1.0), np.append((0.1 * means) ** 2, 1.0))]) == pytest.approx(1)


def test_pairing_pays_if_errors_are_shared() -> None:
    random = np.random.default_rng(0)
    shared, own = random.normal(size=(200, 5)), random.normal(size=(2, 200, 5))

    def pairs(weight: float) -> list[tuple[dict[int, float], dict[int, float]]]:
        return [
            (dict(enumerate(weight * s + a)), dict(enumerate(weight * s + b)))
            for s, a, b in zip(shared, own[0], own[1], strict=True)
        ]

    assert ratio_of_variances(pairs(0.0)) == (pytest.approx(1, abs=0.1), 200)
    assert ratio_of_variances(pairs(3.0))[0] == pytest.approx(1 / 10, abs=0.03)
    apart = ratio_of_variances([({0: 1.0, 1: 2.0}, {2: 1.0, 3: 4.0})])
    assert math.isnan(apart[0]) and apart[1] == 0


def test_the_section_has_a_line_for_each_budget(plain: Paths, tmp_path: Path) -> None:
    report = Report(plain, tmp_path)
    found = section(report)
    assert found is not None and found["comparisons"] == len(report.verdicts.comparisons("edm"))
    lines = unmarked(found["table"]).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| 4", "| 8"]
    assert finding(report) == [], "two models do not show the spread of variances"
