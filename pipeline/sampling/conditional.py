"""One entry to all methods that sample x0 given y: those of `pipeline.sampling.posterior`, which give a denoiser, and
those of `pipeline.sampling.annealed`, which have loops of their own.

The currency of budgets is a network call. A product with J^T counts as two, by convention; `benchmarks.given` measures
what it takes.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.common.errors import StudyError, nearest
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.sampling.annealed import LOOPS, Loop
from pipeline.sampling.loop import draw_like, sample
from pipeline.sampling.measurement import Measurement
from pipeline.sampling.ode import RandnLike
from pipeline.sampling.posterior import METHODS, Method, check_keys, given
from pipeline.sampling.posterior import keys_of as keys_of_denoiser
from pipeline.sampling.row import Sampler

ALL: dict[str, Method | Loop] = {**METHODS, **LOOPS}
PRODUCT = 2  # network calls that a product counts as


@dataclass(frozen=True)
class Drawn:
    """x0 (N, ...) in the solver's precision, and what one sample cost: network calls, products, conjugate gradients."""

    x0: Tensor
    calls: int
    products: int
    cg_steps: int

    @property
    def cost(self) -> int:
        """In network calls."""
        return self.calls + PRODUCT * self.products


def keys_of(method: str) -> Mapping[str, Any]:
    """The keys of a method and their defaults. Raises StudyError for a name that does not exist."""
    if method not in ALL:
        raise StudyError(f"posterior: no method {method!r}; {nearest(method, ALL)}")
    return LOOPS[method].keys if method in LOOPS else keys_of_denoiser(method)


def refusal(method: str, measurement: Measurement, keys: Mapping[str, Any]) -> str | None:
    """One line why a method with these keys cannot use a measurement, with or without y; None if it can."""
    try:
        _check(method, keys)
    except StudyError as error:
        return str(error)
    entry = LOOPS[method] if method in LOOPS else METHODS[method]
    reason = entry.refusal(measurement)
    return f"posterior: {method} {reason}" if reason else None


def cost(method: str, keys: Mapping[str, Any], sampler: Sampler, steps: int, size: int) -> int:
    """Calls and twice the products of one sample; the least possible cost for an adaptive solver.

    size: the numbers m that are measured. Raises StudyError for a wrong key.
    """
    _check(method, keys)
    if method in LOOPS:
        return LOOPS[method].evaluations(sampler, steps, **keys)
    return sampler.evaluations(steps) * _of_answer(method, keys, size)


def steps_within(method: str, keys: Mapping[str, Any], sampler: Sampler, size: int, budget: int) -> int:
    """The largest number of steps that costs at most `budget`; 2 for an adaptive solver, as `Sampler.steps` counts.

    Raises StudyError for a wrong key, and if the budget does not pay for one step.
    """
    _check(method, keys)

    def price(steps: int) -> int:
        return cost(method, keys, sampler, steps, size)

    if method in LOOPS:
        choices = _choices(sampler, budget)

        def price_or_more(steps: int) -> int:
            try:
                return price(steps)
            except StudyError:  # the grid has fewer levels
                return budget + 1

        affordable = bisect_right(choices, budget, key=price_or_more)  # the price rises with the steps
        if affordable:
            return choices[affordable - 1]
        first = choices[0]
    else:
        first = 2 if sampler.build_solver().adaptive else _choices(sampler, budget)[0]
        if price(first) <= budget:
            return sampler.steps(budget // _of_answer(method, keys, size))
    what = f"the {len(sampler.sigmas)} sigmas" if sampler.sigmas else "one step"
    raise StudyError(f"nfe: a budget of {budget} is below {what} of {method}, which costs {price(first)}")


def draw_given(
    denoiser: DenoiserFunction,
    measurement: Measurement,
    noise: Tensor,
    sampler: Sampler,
    steps: int,
    method: str,
    randn_like: RandnLike = draw_like,
    **keys: Any,
) -> Drawn:
    """Draw x0 given y by a method of ALL with its keys; the other arguments are those of `sample`.

    measurement: with y bound by `observed`, (1, m) or (N, m). Methods of LOOPS take the sampler's grid, guidance and
    threshold, and ignore its solver.

    Raises StudyError for a name or a key that does not exist, and for a measurement that the method cannot use, and
    NotFinite if an answer of the denoiser or a sample is not finite.
    """
    _check(method, keys)
    if method in LOOPS:
        made = LOOPS[method].draw(denoiser, measurement, noise, sampler, steps, randn_like, **keys)
        return Drawn(made.x0, made.nfe, 0, 0)
    conditional = given(denoiser, measurement, method, **keys)
    made = sample(conditional, noise, sampler, steps, randn_like)
    return Drawn(made.x0, made.nfe, conditional.bill.products, conditional.bill.cg_steps)


def _check(method: str, keys: Mapping[str, Any]) -> None:
    check_keys(method, keys_of(method), keys, LOOPS[method].most if method in LOOPS else None)


def _of_answer(method: str, keys: Mapping[str, Any], size: int) -> int:
    """What an answer of one network costs, in calls."""
    return 1 + PRODUCT * METHODS[method].products(size, **{**keys_of(method), **keys})


def _choices(sampler: Sampler, budget: int) -> Sequence[int]:
    """The numbers of steps that a row can have."""
    if sampler.sigmas:
        return [len(sampler.sigmas)]
    if finest := sampler.finest_steps:
        return [steps for steps in range(1, finest + 1) if finest % steps == 0]
    return range(1, max(budget, 1) + 1)
