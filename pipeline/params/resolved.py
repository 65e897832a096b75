"""The result of `resolve`: every row of a study written out in full, as validated objects."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from pipeline.common.rows import Row
from pipeline.data.row import Data
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.given_rows import Given, MeasurementRow, PosteriorRow
from pipeline.evaluation.imageset import ImageSet
from pipeline.evaluation.likelihoods import Likelihood
from pipeline.metrics.extractors.row import Features
from pipeline.params.study import Published, Reporting, StudyInfo
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.row import Model


def _with_tuples(values: Any) -> Any:
    """Values as rows hold them: JSON has lists, rows have tuples; a row in a row is a mapping."""
    plain = {key: value.model_dump(mode="json") if isinstance(value, Row) else value for key, value in values.items()}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}


class Filed(Row):
    """A row's relation to its base."""

    base: str
    """The row that it is compared with: the one that it names, else the first row of its section."""
    differences: Annotated[dict[str, Any], BeforeValidator(_with_tuples)]
    """The design choices in which it differs from its base: key -> the row's value. If a curve and its base sample from
    different models, they include the choices in which these models differ."""
    axis: str
    """The common title of the differences; "combinations" if their titles differ, "" if there are no differences."""
    explicit: bool
    """Whether the row names its base itself."""


class ModelEntry(Filed):
    """A model row with its relation to its base."""

    row: Model


class CurveEntry(Filed):
    """A curve row with its relation to its base."""

    row: Curve


class PosteriorEntry(Filed):
    """A posterior sampler with its relation to its base."""

    row: PosteriorRow


class NamedData(Row):
    """The data as the report names them: only the last part of a path, because reports are published."""

    source: str
    built_in: bool
    limit: int | None


class ReportRows(Row):
    """The rows that the report reads: `ReportRows(**read_json(paths.rows / "report.json"))`."""

    title: str
    study: StudyInfo
    preset: str | None
    named_data: NamedData
    samples: int
    """The number of samples behind every score of the study."""
    models: dict[str, ModelEntry]
    curves: dict[str, CurveEntry]
    autoencoders: dict[str, AutoencoderRow]
    sets: dict[str, ImageSet]
    likelihood: Likelihood | None
    measurements: dict[str, MeasurementRow]
    posteriors: dict[str, PosteriorEntry]
    given: Given
    published: tuple[Published, ...]
    report: Reporting
    warnings: tuple[str, ...]
    """One line for each choice that cannot change the result."""

    @property
    def first_of_data(self) -> str:
        """The first model of full images or points, or else the first model."""
        return next((name for name, entry in self.models.items() if entry.row.lives_in_data), next(iter(self.models)))

    @property
    def first_trained(self) -> str:
        """The first model of full images or points that is trained, or else that of `first_of_data`."""
        own = (name for name, one in self.models.items() if one.row.lives_in_data and one.row.import_ is None)
        return next(own, self.first_of_data)

    @property
    def billed(self) -> list[str]:
        """The models with a teacher, their bases, and those trained on as many images as one of them in total."""
        taught = [entry for entry in self.models.values() if entry.row.teacher]
        bases, lengths = {entry.base for entry in taught}, {entry.row.total_images for entry in taught}
        return [
            name
            for name, entry in self.models.items()
            if entry.row.teacher or name in bases or entry.row.total_images in lengths
        ]

    def flat(self, section: str, name: str) -> dict[str, Any]:
        """A row and its relation to its base as one flat mapping of JSON values; `provenance.json` has it like this.

        section: "models", "curves" or "sets".
        """
        if section == "sets":
            return self.sets[name].model_dump(mode="json", exclude={"content"})
        entry: ModelEntry | CurveEntry = getattr(self, section)[name]
        relation = entry.model_dump(mode="json", exclude={"row"})
        if isinstance(entry, ModelEntry):
            return entry.row.model_dump(mode="json") | relation
        return entry.row.model_dump(mode="json", exclude={"method"}) | {"method": entry.row.method} | relation


def _named(rows: Any) -> Any:
    """Rows with only the last part of the path of an autoencoder or a network, because reports are published."""
    if not isinstance(rows, dict):
        return rows
    folder, network = rows.get("folder"), rows.get("import")
    named = {"folder": Path(folder).name, "content": ""} if isinstance(folder, str) and "kind" in rows else {}
    named |= {"import": Path(network).name} if isinstance(network, str) else {}
    return {key: _named(value) for key, value in rows.items()} | named


class Resolved(ReportRows):
    """A resolved study: every row in full."""

    data: Data
    features: Features
    grids: dict[str, tuple[tuple[float, float], ...]]
    """The noise ranges (sigma_min, sigma_max) for which a grid is fitted to each model."""

    def files(self) -> dict[str, Any]:
        """The files that the stage `resolve` writes: name below build/<study>/rows, without .json -> content."""
        first = self.first_trained
        models = {name: entry.row.model_dump(mode="json") for name, entry in self.models.items()}
        curves = {name: e.row.model_dump(mode="json", exclude={"method"}) for name, e in self.curves.items()}
        return {
            "data": self.data.model_dump(mode="json"),
            "features": self.features.model_dump(mode="json"),
            "models": list(models),
            "curves": list(curves),
            "propose": {"model": first, "row": models[first]},
            "autoencoders": {name: row.model_dump(mode="json") for name, row in self.autoencoders.items()},
            "spaces": {name: [entry.row.space, entry.row.resolution] for name, entry in self.models.items()},
            **{f"models/{name}": row for name, row in models.items()},
            **{f"curves/{name}": row for name, row in curves.items()},
            **{f"sets/{name}": row.model_dump(mode="json") for name, row in self.sets.items()},
            "grids": {
                name: {
                    "ranges": [list(each) for each in ranges],
                    "solvers": {each: curves[each] for each in self._fitted(name)},
                    "earlier": self._earlier(name),
                }
                for name, ranges in self.grids.items()
            },
            "likelihood": self.likelihood and self.likelihood.model_dump(mode="json"),
            "given": self._given(),
            "samples": self.samples,
            "report": _named(
                self.model_dump(
                    mode="json", include=set(ReportRows.model_fields), exclude={"sets": {"__all__": {"content"}}}
                )
            ),
        }

    def _fitted(self, model: str) -> list[str]:
        """The curves of a model whose solver is fitted."""
        return [name for name, e in self.curves.items() if e.row.model == model and e.row.solver == "fitted"]

    def _earlier(self, model: str) -> list[str]:
        """The models of the stages before, in all cascades whose last stage is a model."""
        rows = [entry.row for entry in self.curves.values() if entry.row.model == model]
        return sorted({name for row in rows for name in row.stages[:-1]})

    def _given(self) -> dict[str, Any] | None:
        """The rows that the stages `tune` and `given` read; None without posterior samplers."""
        if not self.posteriors:
            return None
        names = dict.fromkeys(entry.row.model for entry in self.posteriors.values() if entry.row.model is not None)
        return {
            "source": self.data.source,
            "given": self.given.model_dump(mode="json"),
            "measurements": {name: row.model_dump(mode="json") for name, row in self.measurements.items()},
            "posteriors": {name: entry.row.model_dump(mode="json") for name, entry in self.posteriors.items()},
            "trained": {name: list(self.models[name].row.train_seeds) for name in names},
        }
