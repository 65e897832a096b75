"""The rows of sampling given a measurement: measurements, posterior samplers, and the problems that they solve."""

from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.common.rows import Name, NonNegativeInt, PositiveFloat, PositiveInt, Row, Seed, Seeds, axis
from pipeline.sampling.conditional import ALL, keys_of, refusal, steps_within
from pipeline.sampling.measurement import MEASUREMENTS, Measurement
from pipeline.sampling.measurement import keys_of as keys_of_measurement
from pipeline.sampling.posterior import COVARIANCES
from pipeline.sampling.row import Budgets, Sampler

METHOD_KEYS = tuple(dict.fromkeys(key for method in ALL for key in keys_of(method)))
WHOLE = ("iterations", "resamplings", "prior_steps")  # keys of methods that count
MOST_OFTEN = 1000  # the largest value of those; the cost of more takes minutes to count
LARGEST = dict.fromkeys(("renoise", "eta_free", "eta_b"), 1) | dict.fromkeys(WHOLE, MOST_OFTEN)  # of keys of methods
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(gt=0, le=MOST_OFTEN)]


class MeasurementRow(Row):
    """A measurement y = A(x) + std n, with n standard normal. Pixels are in [-1, 1]."""

    operator: Literal[tuple(MEASUREMENTS)]  # type: ignore[valid-type]
    """A."""
    std: PositiveFloat
    """Standard deviation of the noise of y."""
    box: tuple[NonNegativeInt, NonNegativeInt, PositiveInt, PositiveInt] | None = None
    """(top, left, height, width) of the pixels that are not measured. For mask."""
    share: Share | None = None
    """Share of the pixels or coordinates that are measured, chosen by `seed`. For mask."""
    kept: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """The pixels, row by row, or coordinates that are measured. For mask."""
    seed: Seed | None = None
    """Seed of the choice of pixels or of directions; null: 0. For mask with share, and for random."""
    factor: PositiveInt | None = None
    """Height and width of the blocks that are averaged; null: 2. For downsample."""
    width: PositiveFloat | None = None
    """Standard deviation of the kernel, in pixels; null: 1. For blur."""
    projections: PositiveInt | None = None
    """Number of random directions. For random."""
    limit: PositiveFloat | None = None
    """Absolute value at which values saturate; null: 0.5. For clip."""

    @field_validator("box", mode="before")
    @classmethod
    def _four(cls, box: Any) -> Any:
        if box is not None and (not isinstance(box, list | tuple) or len(box) != 4):
            raise ValueError("takes [top, left, height, width], in pixels")
        return box

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        keys, written = keys_of_measurement(self.operator), self._written()
        for key in written:
            if key not in keys:
                those = ", ".join(name for name in MEASUREMENTS if key in keys_of_measurement(name))
                raise ValueError(f"{key}: operator {self.operator} does not use it; {key} is for {those}")
        for key, parameter in keys.items():
            if parameter.default is Parameter.empty and key not in written:
                raise ValueError(f"{key}: missing; operator {self.operator} needs it")
        return self

    def _written(self) -> dict[str, Any]:
        others = {key: getattr(self, key) for key in type(self).model_fields if key not in ("operator", "std")}
        return {key: value for key, value in others.items() if value is not None}

    def build(self, shape: Sequence[int]) -> Measurement:
        """The measurement of x of this shape. Raises StudyError if it does not go with it."""
        build = MEASUREMENTS[self.operator]
        return build(shape, self.std, **self._written())


class PosteriorRow(Sampler):
    """A posterior sampler: a method, the denoiser that it uses, and the keys of a sampler."""

    posterior: Literal[tuple(ALL)] = axis("dps", "posterior")  # type: ignore[valid-type]
    """The method that samples x0 given y."""
    model: Name | None = axis(None, "model")
    """The row of models whose denoiser it uses; null: the exact denoiser of the data."""
    given: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """The measurements that it is given; null: all that the method can use."""
    zeta: PositiveFloat | None = axis(None, "posterior keys")
    """Factor on the gradient; null: 1. For dps and dps_norm."""
    step: PositiveFloat | None = axis(None, "posterior keys")
    """Size of the gradient step; null: 1. For mpgd."""
    data_std: PositiveFloat | None = axis(None, "posterior keys")
    """Standard deviation of the data that the method assumes; null: 1. For pigdm."""
    covariance: Literal[COVARIANCES] | None = axis(None, "posterior keys")  # type: ignore[valid-type]
    """Whether the covariance of x0 given z is full or diagonal; null: full. For tmp."""
    iterations: Count | None = axis(None, "posterior keys")
    """Iterations of conjugate gradients; null: 1. For mmps."""
    resamplings: Count | None = axis(None, "posterior keys")
    """How often each step is repeated; null: 10. For repaint."""
    fidelity: PositiveFloat | None = axis(None, "posterior keys")
    """Weight of D against y, lambda in the paper; null: 1. For diffpir."""
    renoise: Share | None = axis(None, "posterior keys")
    """Share of fresh noise in each step, zeta in the paper; null: 0.1. For diffpir."""
    eta_free: Share | None = axis(None, "posterior keys")
    """Share of fresh noise where y says less than z, eta in the paper; null: 0.85. For ddrm."""
    eta_b: Share | None = axis(None, "posterior keys")
    """Share of y where it says more than z; null: 1. For ddrm."""
    prior_steps: Count | None = axis(None, "posterior keys")
    """Steps of the inner sampler at each noise level; null: 5. For daps and pnpdm."""
    spread: PositiveFloat | None = axis(None, "posterior keys")
    """Assumed standard deviation of x0 given z, in units of sigma; null: 1. For daps."""
    tune: dict[str, tuple[PositiveFloat, PositiveFloat]] = Field(default_factory=dict)
    """Keys of the method with the lowest and the highest value that the stage `tune` tries; {}: none."""
    nfe: Budgets = (9, 27, 81, 243)
    """Budgets of cost: network calls, where a product with the Jacobian counts as two."""

    @field_validator("tune", mode="before")
    @classmethod
    def _ranges(cls, tune: Any) -> Any:
        for key, values in tune.items() if isinstance(tune, dict) else ():
            if not isinstance(values, list | tuple) or len(values) != 2:
                raise ValueError(f"{key} takes the lowest and the highest value, such as [0.1, 10]")
        return tune

    @model_validator(mode="after")
    def _known(self) -> Self:
        for key, default in (("end", "zero"), ("first_step", "network")):
            if (value := getattr(self, key)) != default:
                raise ValueError(f"{key}: {value} is for curves; posterior samplers need {default}")
        keys = keys_of(self.posterior)
        for key in METHOD_KEYS:
            if getattr(self, key) is not None and key not in keys:
                those = ", ".join(name for name in ALL if key in keys_of(name))
                raise ValueError(f"{key}: method {self.posterior} does not use it; {key} is for {those}")
        for key, (low, high) in self.tune.items():
            if key not in keys or key == "covariance":
                tunable = ", ".join(key for key in keys if key != "covariance") or "none"
                raise ValueError(f"tune.{key}: method {self.posterior} has no such number; valid: {tunable}")
            if low >= high:
                raise ValueError(f"tune.{key}: {low:g} must be below {high:g}")
            if high > (most := LARGEST.get(key, high)):
                raise ValueError(f"tune.{key}: {high:g} must be at most {most}")
        return self

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of the method, as written or by default."""
        written = {key: getattr(self, key) for key in keys_of(self.posterior)}
        return {
            key: default if written[key] is None else written[key] for key, default in keys_of(self.posterior).items()
        }

    def candidates(self, count: int) -> list[dict[str, Any]]:
        """Up to `count` different choices of the method's keys: those of the row, then others evenly over log ranges.

        The others are a Kronecker sequence of the golden ratio's generalisation (Roberts 2018, "The unreasonable
        effectiveness of quasirandom sequences"), in one dimension evenly spaced.
        """
        chosen, ranges = [self.keys], self.tune
        root = 1.0
        for _ in range(64):
            root = (1 + root) ** (1 / (len(ranges) + 1))
        for number in range(count - 1):
            values = {}
            for place, (key, (low, high)) in enumerate(ranges.items(), 1):
                share = (0.5 + (number + 1) * root**-place) % 1
                if len(ranges) == 1:
                    share = number / (count - 2) if count > 2 else 0.5
                value = low * (high / low) ** share
                values[key] = max(1, round(value)) if key in WHOLE else float(f"{value:.3g}")
            if (keys := self.keys | values) not in chosen:
                chosen.append(keys)
        return chosen


class Given(Row):
    """The `given` section: the problems that posterior samplers solve, and the budget of their tuning."""

    problems: Annotated[int, Field(ge=4, le=10_000)] = 32
    """Measurements of each kind, of as many x0."""
    draws: Annotated[int, Field(ge=4, le=10_000)] = 32
    """Samples of x0 for each measurement."""
    batch: PositiveInt = 2048
    """Samples per call of the network, rounded down to whole problems."""
    sample_seeds: Seeds = (0, 1, 2)
    """Seeds of sampling, paired with the training seeds of a model."""
    validation: Annotated[int, Field(ge=2, le=10_000)] = 8
    """Measurements of each kind for tuning, of other x0."""
    validation_draws: Annotated[int, Field(ge=2, le=10_000)] = 8
    """Samples for each of them."""
    candidates: Annotated[int, Field(ge=2, le=1000)] = 6
    """Choices of keys that the stage `tune` tries for each row with `tune`, measurement and budget."""


def refused(row: PosteriorRow, measurement: Measurement) -> str | None:
    """Why the method cannot use a measurement, in one line that begins with its key; None if it can."""
    return refusal(row.posterior, measurement, row.keys)


def measured_by(row: PosteriorRow, measurements: Mapping[str, MeasurementRow], shape: Sequence[int]) -> list[str]:
    """The measurements that a row is given: those that it names, or all that its method can use."""
    if row.given is not None:
        return list(row.given)
    return [name for name, each in measurements.items() if refused(row, each.build(shape)) is None]


def steps_of(row: PosteriorRow, keys: Mapping[str, Any], measurement: Measurement, budget: int) -> int:
    """The steps that a budget pays for. Raises StudyError if it pays for none, or for a number that the grid lacks."""
    steps = steps_within(row.posterior, keys, row, measurement.size, budget)
    row.grid(steps)
    return steps


def check_budget(row: PosteriorRow, measurement: Measurement) -> None:
    """Raise StudyError if a budget is below one step, or pays for a number of steps that the grid lacks."""
    for budget in row.nfe:
        steps_of(row, row.keys, measurement, budget)


def described_keys(keys: Mapping[str, Any]) -> str:
    """Keys of a method in one line: "zeta 0.3, iterations 2"."""
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in keys.items()
    )
