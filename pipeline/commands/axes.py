"""The sections of the design-space page: every axis, the keys that its choices use, and what the code knows of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

from pipeline.diffusion.averages import HalfLife, Power, synthesis
from pipeline.diffusion.grids import DISCRETIZATIONS
from pipeline.diffusion.networks.registry import KEYS
from pipeline.diffusion.schedule import SCALING_OF_SCHEDULE
from pipeline.params.descriptions import Description, choices, description, halves
from pipeline.params.explain import FILLED_IN
from pipeline.sampling import conditional
from pipeline.sampling.measurement import keys_of as keys_of_measurement
from pipeline.sampling.ode import Solver
from pipeline.sampling.row import Sampler, keys_of
from pipeline.sampling.stochastic import Churned
from pipeline.sampling.thresholding import keys_of as keys_of_threshold
from pipeline.training.autoencoder_row import KEYS as KEYS_OF_KIND
from pipeline.training.noise import keys_of as keys_of_noise
from pipeline.training.objectives import OBJECTIVES
from pipeline.training.weighting import WEIGHTINGS

COEFFICIENTS = ("c_skip", "c_out", "c_in", "c_noise")


@dataclass(frozen=True)
class Axis:
    """A section of the page: the choices of a key, or, where `key` is "", of several keys together.

    section: of params.yaml; formula: the title of the formulas' column; keys: the further keys that a choice uses;
    published: their values as published with a choice, if not the defaults; columns: title -> cell of a choice.
    """

    title: str
    section: str
    key: str
    about: str
    formula: str = ""
    keys: Callable[[str], Iterable[str]] = lambda name: ()
    published: Callable[[str], Mapping[str, Any]] = lambda name: {}
    columns: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    unkeyed: Mapping[str, Description] = field(default_factory=dict)

    @property
    def choices(self) -> Mapping[str, Description]:
        return choices(self.key) if self.key else self.unkeyed


def _solver(name: str) -> Solver:
    return Sampler(solver=name, nfe=(100,)).build_solver()


def evaluations(name: str) -> str:
    """What N steps of a solver cost, as a formula in N: read off what 2 and 3 steps cost."""
    solver = _solver(name)
    if solver.adaptive:
        return f"{solver.evaluations(2)} or more"
    slope = solver.evaluations(3) - solver.evaluations(2)
    offset = solver.evaluations(2) - 2 * slope
    return f"{slope if slope > 1 else ''}N" + (f" {'-' if offset < 0 else '+'} {abs(offset)}" if offset else "")


def _range_of_grid(name: str) -> str:
    grid = DISCRETIZATIONS[name]
    return "that of the list" if name == "explicit" else f"{grid.sigma_min:.4g} to {grid.sigma_max:.5g}"


def coefficients(name: str) -> dict[str, str]:
    """The four coefficients of a parametrization as formulas."""
    parts = [part.partition(" = ") for half in halves(name) for part in half.formula.split("; ")]
    return {key: formula for key, _, formula in parts}


def _coefficient(key: str, name: str) -> str:
    return f"`{coefficients(name)[key]}`"


def _published_weighting(name: str) -> dict[str, Any]:
    parameters = signature(WEIGHTINGS[name].function).parameters
    return {key: parameters[key].default for key in WEIGHTINGS[name].optional}


AXES = (
    Axis(
        "Solvers",
        "curves",
        "solver",
        "A step in z = x0 + sigma n, or in x = s z for the solvers that step in t, for which `schedule` and `scaling` "
        "matter. d = dx/dt, h is the step of t, r = sigma_next / sigma, lambda = -ln sigma, eps = (z - D) / sigma. D_1 "
        "is D one step earlier, r_0 that step of lambda over the present one. The last step, to sigma = 0, is Euler's, "
        "except for `lms`. NFE is that of N steps with `end: zero`; w_j are fitted weights. Tests and differences from "
        "other libraries: [samplers](samplers.md).",
        "step",
        lambda name: [key for key in keys_of(name) if key not in FILLED_IN],
        columns={
            "steps in": lambda name: _solver(name).variable,
            "order": lambda name: str(_solver(name).order or ("adaptive" if _solver(name).adaptive else "none")),
            "NFE": evaluations,
            "adds noise": lambda name: "yes" if _solver(name).stochastic else "no",
        },
    ),
    Axis("Variances of `ddpm`", "curves", "variance", "The variance of the noise that a step adds.", "variance"),
    Axis(
        "Variants of `unipc`",
        "curves",
        "variant",
        "The function B(h), h being the step of lambda. It cancels where three or more evaluations are combined. So it "
        "acts only in the first correction, the second prediction and the last prediction but one, and with `order: 2` "
        "in every prediction between them.",
        "B(h)",
    ),
    Axis("Fits of `fitted`", "curves", "fit", "The numbers that are fitted to the model, beside the levels told."),
    Axis("Levels told by `fitted`", "curves", "told", "The noise level that the network is told in each step."),
    Axis("Starts of `fitted`", "curves", "start", "The solver whose numbers a fit begins with, on the row's grid."),
    Axis(
        "Churn",
        "curves",
        "",
        "Raises sigma by noise before each step of a deterministic solver that takes fixed steps one at a time.",
        "raised sigma",
        lambda name: ("S_churn", "S_min", "S_max", "S_noise"),
        unkeyed={"churn": description(Churned.__doc__)},
    ),
    Axis(
        "Schedules",
        "curves",
        "schedule",
        "The time t of the ODE dx/dt = (s'/s + sigma'/sigma) x - (sigma' s / sigma) D(x / s; sigma). Any schedule goes "
        "with any grid.",
        "sigma(t)",
        columns={"default scaling": lambda name: f"`{SCALING_OF_SCHEDULE[name]}`"},
    ),
    Axis("Scalings", "curves", "scaling", "The factor s in x = s z.", "s(sigma)"),
    Axis(
        "Grids",
        "curves",
        "discretization",
        "N falling noise levels, i = 0 .. N - 1, and then 0. `sigma_min` and `sigma_max` override the range.",
        "sigma_i",
        lambda name: [key for key in DISCRETIZATIONS[name].keys if key in Sampler.model_fields],
        columns={"range": _range_of_grid},
    ),
    Axis(
        "Spacings of DDPM's levels",
        "curves",
        "spacing",
        "Which of the K levels in the range a grid of N steps uses, counted from the lowest.",
        "index",
    ),
    Axis(
        "Ends",
        "curves",
        "end",
        "The last noise level of a sampler: [published protocols](samplers.md#published-protocols).",
    ),
    Axis(
        "First steps",
        "curves",
        "first_step",
        "The first evaluation of a sampler, at sigma_max: [published protocols](samplers.md#published-protocols).",
        "D",
    ),
    Axis(
        "Parametrizations",
        "models",
        "parametrization",
        "D(z; sigma) = c_skip z + c_out F(c_in z, c_noise), where F is the network. A parametrization joins a target, "
        "which gives c_skip and c_out, with a path, which gives c_in and c_noise.",
        columns={key: partial(_coefficient, key) for key in COEFFICIENTS},
    ),
    Axis(
        "Training noise",
        "models",
        "noise",
        "The distribution of sigma as its quantile function, which takes a uniform u to sigma.",
        "sigma(u)",
        keys_of_noise,
    ),
    Axis("Draws", "models", "draws", "How the u of a batch are drawn."),
    Axis(
        "Loss weightings",
        "models",
        "weighting",
        "The loss is the mean of lambda(sigma) (D - x0)^2, or of another distance and target.",
        "lambda(sigma)",
        lambda name: sorted(WEIGHTINGS[name].optional),
        published=_published_weighting,
    ),
    Axis(
        "Objectives",
        "models",
        "objective",
        "Towards which target D(z; sigma) is trained, at z = x0 + sigma n. The target is computed without gradients. r "
        "is a lower noise level, T(z; sigma) the answer of the teacher: the model that the row names as its base, from "
        "whose weights the training starts. Costs, and what networks for few steps buy: [training](training.md).",
        "target",
        lambda name: (*OBJECTIVES[name].keys, *OBJECTIVES[name].published),
        published=lambda name: OBJECTIVES[name].published,
        columns={"teacher": lambda name: "yes" if OBJECTIVES[name].teacher else "no"},
    ),
    Axis(
        "Distances",
        "models",
        "distance",
        "The distance between D and its target, a = D - target, over the d values of an image.",
        "distance",
    ),
    Axis(
        "Growth of the number of noise levels",
        "models",
        "level_growth",
        "The number of intervals of the grid in a step k of K, from `first_levels` a to `last_levels` b. For "
        "consistency_distillation and consistency_training.",
        "intervals",
    ),
    Axis(
        "Learned variances",
        "models",
        "learned_variance",
        "Whether the network also answers v, the place of the variance of a step between beta_tilde and beta, for "
        "`variance: learned`. For `parametrization: ddpm` with `noise: ddpm_uniform`, and `iddpm` with "
        "`iddpm_uniform`, on images with independent pairs.",
    ),
    Axis(
        "Pairs",
        "models",
        "pairs",
        "Which noise is paired with which image.",
        keys=lambda name: ("reflow_pairs",) if name == "reflow" else (),
    ),
    Axis(
        "Guidance",
        "curves",
        "guide",
        "D is replaced by D_w where `guidance_min` < sigma <= `guidance_max` (Kynkaanniemi et al. 2024, arXiv "
        "2404.07724). w is `guidance`. Each call of a network counts as an evaluation.",
        "D_w",
        lambda name: ("guidance", *(("guide_images",) if name == "snapshot" else ())),
    ),
    Axis(
        "Thresholds",
        "curves",
        "threshold",
        "D, after guidance, is replaced by a thresholded D wherever the solver uses it. Only for images, whose pixels "
        "are in [-1, 1].",
        "thresholded D",
        keys_of_threshold,
    ),
    Axis(
        "Averages of the weights",
        "models",
        "",
        "Curves select one by `ema_halflife_images` or `ema_sigma_rel`. The factor is what step k (1, 2, ...) of B "
        "images leaves of the average.",
        "factor",
        lambda name: {
            "half-life": ("ema_halflife_images", "ema_ramp_up", "ema_halflives_images"),
            "power function": ("ema_sigma_rels",),
            "from snapshots": ("snapshots",),
        }[name],
        unkeyed={
            "half-life": description(HalfLife.__doc__),
            "power function": description(Power.__doc__),
            "from snapshots": description(synthesis.__doc__),
        },
    ),
    Axis(
        "Networks",
        "models",
        "network",
        "Their parts, labels and checkpoints: [networks](networks.md).",
        keys=lambda name: KEYS[name],
    ),
    Axis("Noise embeddings", "models", "embedding", "How the network embeds c_noise."),
    Axis(
        "Learning-rate decays",
        "models",
        "learning_rate_decay",
        "The factor on `learning_rate` at step k of K steps of B images.",
        "factor",
        lambda name: ("learning_rate_reference_images",) if name == "inverse_sqrt" else (),
    ),
    Axis(
        "Conditioning augmentation",
        "upsampler",
        "augmentation",
        "How the low-resolution images of an upsampler are augmented, with a strength that is uniform in training and "
        "that `strength` of a curve chooses in sampling: [latents and cascades](latents.md).",
        "low-resolution image, or kernel",
        lambda name: ("strength",),
    ),
    Axis(
        "Autoencoders",
        "autoencoders",
        "kind",
        "In whose latents models are trained: [latents and cascades](latents.md).",
        "loss",
        lambda name: KEYS_OF_KIND[name],
    ),
    Axis(
        "Traces",
        "likelihood",
        "trace",
        "How the trace of dD/dz is computed: [likelihood](likelihood.md).",
        keys=lambda name: ("probes",) if name == "hutchinson" else (),
    ),
    Axis(
        "Dequantization",
        "likelihood",
        "dequantization",
        "Noise that makes pixels continuous. w = 1 / 127.5 is the width of a level in units of [-1, 1].",
    ),
    Axis(
        "Measurements",
        "measurements",
        "operator",
        "y = A x + std n with n standard normal: [sampling given a measurement](given.md).",
        "A x",
        keys_of_measurement,
        lambda name: {key: p.default for key, p in keys_of_measurement(name).items() if p.default is not p.empty},
    ),
    Axis(
        "Posterior samplers",
        "posteriors",
        "posterior",
        "How x0 is sampled given y. In formulas e = y - A(D), J = dD/dz, and A = U diag(a) V^T: "
        "[sampling given a measurement](given.md).",
        "E[x0 given z, y], or a step",
        conditional.keys_of,
        conditional.keys_of,
    ),
)
