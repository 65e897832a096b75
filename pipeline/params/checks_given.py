"""Mistakes in the sections of sampling given a measurement: `measurements`, `posteriors` and `given`."""

from collections.abc import Mapping, Sequence

from pipeline.common.errors import StudyError, nearest
from pipeline.evaluation.given import EXACT, PROBLEMS
from pipeline.evaluation.given_rows import PosteriorRow, check_budget, refused
from pipeline.params.checks_common import check_named, check_of_data, check_threshold
from pipeline.params.resolved import ReportRows
from pipeline.params.study import Study
from pipeline.training.row import Model

# All functions here raise StudyError, one line that says where, what is wrong, and what to write instead.


def check_posteriors(study: Study, rows: Mapping[str, PosteriorRow], models: Mapping[str, Model]) -> None:
    """Refuse posterior samplers of models, measurements or sampler choices that do not exist or do not go together."""
    if rows and not study.measurements:
        raise StudyError(
            "measurements: missing; posterior samplers need at least one, such as noisy: {operator: identity, std: 0.5}"
        )
    if study.measurements and not rows:
        raise StudyError("posteriors: missing; measurements need at least one, such as dps: {posterior: dps}")
    for name, row in rows.items():
        place = f"posteriors.{name}"
        if name == EXACT:
            raise StudyError(f"{place}: this is the name of the perfect sampler in the report; rename the row")
        if name == PROBLEMS:
            raise StudyError(f"{place}: this is the name of a file that the stage `given` writes; rename the row")
        for which in row.given or ():
            if which not in study.measurements:
                raise StudyError(f"{place}.given: no measurement {which!r}; {nearest(which, study.measurements)}")
        if row.given and len(set(row.given)) < len(row.given):
            raise StudyError(f"{place}.given: a measurement is listed twice; list each once")
        if row.discretization == "optimised":
            raise StudyError(
                f"{place}.discretization: optimised grids are fitted to sampling without a measurement; use another"
            )
        if row.solver == "fitted":
            raise StudyError(f"{place}.solver: fitted to sampling without a measurement; use another")
        if row.build_solver().adaptive:
            raise StudyError(
                f"{place}.solver: {row.solver} chooses its number of steps; use one whose steps a budget can pay for"
            )
        if not row.build_guidance().idle:
            raise StudyError(f"{place}.guidance: a posterior sampler is guided by its measurement; leave guidance out")
        if row.variance == "learned":
            raise StudyError(
                f"{place}.variance: a learned variance is that of sampling without a measurement; use beta"
            )
        check_threshold(place, row, study.data.source)
        _check_model(place, row, models)


def _check_model(place: str, row: PosteriorRow, models: Mapping[str, Model]) -> None:
    if row.model is None:
        return
    check_named(f"{place}.model", row.model, models)
    check_of_data(f"{place}.model", row.model, models[row.model])
    model = models[row.model]
    if model.labels == "classes":
        raise StudyError(
            f"{place}.model: model {row.model} has classes, and measurements have none; use one with labels: none"
        )
    if model.objective != "denoising":
        raise StudyError(
            f"{place}.model: model {row.model} has objective {model.objective}; use a denoiser, whose answers are means"
        )


def check_measurements(rows: ReportRows, shape: Sequence[int], count: int) -> None:
    """Refuse measurements that do not go with data of this shape, and methods and budgets that do not go with them.

    count: the number of training images, of which problems and validation take different ones.
    """
    needed = rows.given.problems + rows.given.validation
    if rows.posteriors and len(shape) == 3 and needed > count:
        raise StudyError(
            f"given.problems: {rows.given.problems} problems and {rows.given.validation} for validation take {needed} "
            f"different images, and the data have {count}; lower them"
        )
    built = {}
    for name, measurement in rows.measurements.items():
        try:
            built[name] = measurement.build(shape)
        except StudyError as error:
            raise StudyError(f"measurements.{name}: {error}") from None
    for name, entry in rows.posteriors.items():
        place, row = f"posteriors.{name}", entry.row
        reasons = {which: refused(row, built[which]) for which in row.given or built}
        for which, reason in reasons.items():
            if reason and (row.given or all(reasons.values())):
                raise StudyError(f"{place}.{reason}, given {which}")
        for which in (which for which, reason in reasons.items() if not reason):
            try:
                check_budget(row, built[which])
            except StudyError as error:
                raise StudyError(f"{place}.{error}, given {which}") from None
