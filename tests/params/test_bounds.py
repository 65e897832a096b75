"""Every number of a study file has bounds, so that none can lead a check into hours or out of float64."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import StudyError
from pipeline.common.rows import MOST, Row
from pipeline.data.row import Data
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.imageset import ImageSet
from pipeline.metrics.extractors.row import Features
from pipeline.params.needs import Needs
from pipeline.params.resolve import MOST_BASES, MOST_NESTED, resolve
from pipeline.params.schema import properties_of
from pipeline.params.study import Published, Reporting, read_study
from pipeline.sampling.row import Sampler
from pipeline.training.row import Model
from tests.params.minimal import FLOW, curve, models, refusal, resolved

ROWS = (Model, Curve, ImageSet, Features, Data, Needs, Published, Reporting)
NO_LIMIT = ("S_max", "guidance_max")  # larger values mean: no limit


def numbers(part: Any) -> Iterator[dict[str, Any]]:
    """The parts of a JSON Schema that are numbers."""
    if isinstance(part, dict):
        if part.get("type") in ("integer", "number"):
            yield part
        for each in part.values():
            yield from numbers(each)
    elif isinstance(part, list):
        for each in part:
            yield from numbers(each)


@pytest.mark.parametrize("row", ROWS)
def test_every_number_has_bounds(row: type[Row]) -> None:
    found = [(key, part) for key, value in properties_of(row).items() for part in numbers(value)]
    assert found
    for key, part in found:
        low = part.get("minimum", part.get("exclusiveMinimum"))
        high = part.get("maximum", part.get("exclusiveMaximum"))
        assert low is not None and abs(low) <= MOST, key
        assert key in NO_LIMIT or (high is not None and high <= MOST), key


@pytest.mark.parametrize("value", [MOST + 1, 1e300, float("inf")])
@pytest.mark.parametrize("key", NO_LIMIT)
def test_a_limit_above_all_noise_levels_is_none(key: str, value: float) -> None:
    assert getattr(Sampler(**{key: value}), key) is None


def test_too_large_a_number_is_told_with_the_limit(tmp_path: Path) -> None:
    assert refusal(tmp_path, **models(x={"images": 10**13})) == (
        "models.x.images: takes numbers of size 1e+12 at most, not 10000000000000"
    )
    line = refusal(tmp_path, **models(x={"images": 10**10, "batch": 1}))
    assert line.startswith("models.x: images: 10000000000 are 10000000000 steps; the most is ")


@pytest.mark.parametrize("keys", [{"sigma_min": 1e-16}, {"schedule": "ve", "sigma_max": 1e6, "sigma_min": 1e-3}])
def test_noise_levels_that_one_step_cannot_tell_from_0_are_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert "must fall from step to step in float64" in refusal(tmp_path, **curve(**keys))


def written(tmp_path: Path, rows: list[str]) -> Path:
    (path := tmp_path / "params.yaml").write_text(
        "study: {name: t}\nsets: {}\ncurves: {edm: {model: r0}}\nmodels:\n" + "".join(f"  {row}\n" for row in rows)
    )
    return path


def test_a_chain_of_bases_has_an_end(tmp_path: Path) -> None:
    rows = ["r0: {}", *(f"r{i}: {{base: r{i - 1}}}" for i in range(1, 2000))]
    with pytest.raises(StudyError, match=f"^models.r1.base: r{MOST_BASES + 1} has more than {MOST_BASES} bases"):
        resolve(read_study(written(tmp_path, rows)))


@pytest.mark.parametrize("key", ["pairs: reflow", "equal: flops"])
def test_rows_that_need_each_other_have_an_end(tmp_path: Path, key: str) -> None:
    flow = ", ".join(f"{name}: {value}" for name, value in FLOW.items())
    rows = [f"r0: {{{flow}}}", *(f"r{i}: {{base: r{i - 1}, {key}, images: {9000 + i}}}" for i in range(1, 30))]
    with pytest.raises(StudyError, match=f"^models.r{MOST_NESTED + 1}.{key[:5]}: more than {MOST_NESTED} rows"):
        resolve(read_study(written(tmp_path, rows)))


def test_a_long_chain_within_the_bounds_is_resolved(tmp_path: Path) -> None:
    rows = {f"r{i}": {"base": f"r{i - 1}" if i > 1 else "edm"} for i in range(1, 9)}
    assert resolved(tmp_path, **models(**rows))["models"][-1] == "r8"
