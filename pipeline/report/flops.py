"""The cost of a sample in floating-point operations (FLOPs), and as FLOP-weighted NFE."""

from typing import NamedTuple

from pipeline.common.errors import StudyError
from pipeline.report.study import Report

SAME = 0.01  # networks whose FLOPs differ by a smaller share cost the same


class Stage(NamedTuple):
    """The evaluations of a model for one sample, and the FLOPs of one evaluation."""

    model: str
    evaluations: int
    flops: int


class Bill(NamedTuple):
    """What one sample costs: its stages, the first one first, and the FLOPs of the decoder, 0 without one."""

    stages: tuple[Stage, ...]
    decoder: int

    @property
    def total(self) -> int:
        """The FLOPs of a sample."""
        return sum(stage.evaluations * stage.flops for stage in self.stages) + self.decoder


def bill(report: Report, curve: str, nfe: int) -> Bill:
    """The cost of a sample of a curve at a measured NFE.

    Raises StudyError if the evaluations of a cascade's stages do not add up to the counted NFE.
    """
    row = report.curves[curve].row
    stages = [(row.model, nfe)]
    if row.earlier:
        stages = row.stage_evaluations(report.steps(curve)[nfe])
        if (total := sum(count for _, count in stages)) != nfe:
            raise StudyError(f"curves.{curve}: its stages take {total} evaluations, but {nfe} were counted")
    costs = [Stage(model, count, report.training[model]["flops"]) for model, count in stages]
    space = report.model(curve).space
    return Bill(tuple(costs), report.autoencoders[space]["decoder_flops"] if space else 0)


def weighted(report: Report, curve: str, nfe: int) -> float:
    """The FLOP-weighted NFE of a curve at a measured NFE: the evaluations of `reference` that cost as many FLOPs."""
    return bill(report, curve, nfe).total / report.training[reference(report)]["flops"]


def reference(report: Report) -> str:
    """The model whose evaluations are the unit: the first one of whole images in pixels, or else the first model."""
    return report.rows.first_of_data


def mixes(report: Report) -> bool:
    """Whether the methods of a study use networks of different cost, or decode latents."""
    costs = [report.training[model]["flops"] for name in report.methods for model in report.curves[name].row.stages]
    return max(costs) > (1 + SAME) * min(costs) or any(report.model(name).space for name in report.methods)
