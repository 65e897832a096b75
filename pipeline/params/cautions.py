"""Rows that ask a model for what it was not trained for: fair questions, but seldom what is meant."""

from collections.abc import Iterator, Mapping

from pipeline.evaluation.curve import Curve
from pipeline.evaluation.likelihoods import Likelihood
from pipeline.training.objectives import OBJECTIVES
from pipeline.training.row import Model


def cautions(models: Mapping[str, Model], curves: Mapping[str, Curve], likelihood: Likelihood | None) -> Iterator[str]:
    """One line for each curve whose solver or grid does not go with the objective or the pairs of its model, and for
    each model whose likelihood does not go with its pairs."""
    for name in likelihood.models if likelihood else ():
        if (pairs := models[name].pairs) != "independent":
            yield (
                f"likelihood.models: model {name} was trained on noise that depends on the image (pairs {pairs}): its "
                "ODE has a likelihood, but its variational bound is that of independent noise"
            )
    for name, curve in curves.items():
        model, place, most = models[curve.model], f"curves.{name}", max(curve.step_counts)
        maps, several = OBJECTIVES[model.objective].maps, most > 1
        if curve.solver == "consistency" and not maps and several:
            yield (
                f"{place}.solver: consistency is for consistency maps, and model {curve.model} was trained by "
                f"{model.objective}: its answers are means, from which the noise of every step takes more away"
            )
        if curve.solver != "consistency" and maps and several:
            yield (
                f"{place}.solver: {curve.solver} takes the answers of model {curve.model} for means, and they are "
                "ends of trajectories; for several steps use consistency"
            )
        if curve.build_solver().stochastic and model.pairs != "independent" and several:
            yield (
                f"{place}.solver: {curve.solver} adds noise that is independent of the image, and model {curve.model} "
                f"was trained on noise that is not (pairs {model.pairs}); use a deterministic solver"
            )
        if model.objective == "progressive" and several and not _same_grid(curve, model):
            yield (
                f"{place}.discretization: the students of model {curve.model} know the steps of their own grid alone; "
                f"use discretization {model.grid} with finest_steps: {2 * model.first_steps} and solver ddim"
            )


def _same_grid(curve: Curve, model: Model) -> bool:
    """Whether a curve takes the steps for which the students of progressive distillation were trained."""
    if curve.discretization in ("explicit", "optimised"):
        return False
    trained = {"discretization": model.grid, "finest_steps": 2 * model.first_steps, "solver": "ddim"}
    like = type(curve)(model=curve.model, nfe=curve.nfe, **trained)
    one_step = curve.build_solver().order == 1 and not curve.build_solver().stochastic
    most = max(curve.step_counts)
    return one_step and curve.grid(most).equal(like.grid(most))
