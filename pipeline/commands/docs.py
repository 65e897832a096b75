"""The design space as a page, docs/design-space.md: every entry of every axis, with its formula, source and keys.

Names, keys, defaults, ranges, orders and costs are read off the code. A `formula` is evaluated by the tests and held
against the code; what can't be put as one is told in `words`. tests/test_docs.py asks that each entry of each axis
stands here, and no other.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import Any

from pipeline.common.rows import Row
from pipeline.diffusion.networks.embedding import EMBEDDINGS
from pipeline.diffusion.networks.registry import KEYS, NETWORKS
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.diffusion.schedule import (
    EPS_S,
    EPS_T,
    IDDPM_C2,
    SCALING_OF_SCHEDULE,
    SCALINGS,
    SCHEDULES,
    VP_BETA_D,
    VP_BETA_MIN,
    VP_STEPS,
)
from pipeline.params.explain import FILLED_IN
from pipeline.params.schema import CURVE, MODEL
from pipeline.params.study import Curve
from pipeline.sampling.grids import DISCRETIZATIONS, SPACINGS
from pipeline.sampling.guidance import GUIDES
from pipeline.sampling.row import Sampler, keys_of
from pipeline.sampling.solvers import SOLVERS, VARIANCES
from pipeline.training.draws import DRAWS
from pipeline.training.noise import NOISES
from pipeline.training.noise import keys_of as keys_of_noise
from pipeline.training.optimizer import DECAYS
from pipeline.training.pairs import PAIRS
from pipeline.training.row import Model
from pipeline.training.weighting import WEIGHTINGS

EDM, SONG, DDPM_, DDIM_, IDDPM = "2206.00364", "2011.13456", "2006.11239", "2010.02502", "2102.09672"
FLOW, SD3, DPM, DPMPP, DEIS = "2209.03003", "2403.03206", "2206.00927", "2211.01095", "2204.13902"
EDM2 = "2312.02696"


@dataclass(frozen=True)
class Entry:
    """One choice: its formula and what follows from words, and where it is from: arXiv numbers and places there."""

    formula: str = ""
    words: str = ""
    source: str = ""


VP_SIGMA = "sqrt(exp(b_d t^2 / 2 + b_min t) - 1)"

SCHEDULE = {  # sigma of t
    "linear": Entry("t", source=f"{EDM}; {DDIM_}"),
    "vp": Entry(VP_SIGMA, "b_d, b_min solved for the row's range", f"{SONG}; {EDM}, app. C"),
    "ve": Entry("sqrt(t)", source=SONG),
    "flow": Entry("t / (1 - t)", "the straight path", FLOW),
    "cosine": Entry(
        "sqrt((cos(a C_2) / cos(a (t + C_2)))^2 - 1), a = pi / (2 + 2 C_2)", "in continuous time", f"{IDDPM}, eq. 17"
    ),
}

SCALING = {  # s of sigma
    "none": Entry("1", source=EDM),
    "vp": Entry("1 / sqrt(1 + sigma^2)", source=SONG),
    "flow": Entry("1 / (1 + sigma)", source=FLOW),
}

GEOMETRIC = "sigma_max (sigma_min / sigma_max)^(i / (N - 1))"
GRID = {  # sigma of i, N
    "edm": Entry(
        "(a + i / (N - 1) (b - a))^rho, a = sigma_max^(1 / rho), b = sigma_min^(1 / rho)", source=f"{EDM}, eq. 5"
    ),
    "vp": Entry(
        f"{VP_SIGMA}, t = 1 + i / (N - 1) (eps_s - 1)",
        "b_d, b_min solved for the row's range",
        f"{SONG}; {EDM}, Table 1",
    ),
    "ve": Entry(GEOMETRIC, source=f"{SONG}; {EDM}, Table 1"),
    "iddpm": Entry("", "the levels of the cosine betas in the range, evenly subsampled", f"{IDDPM}; {EDM}, Table 1"),
    "flow": Entry(
        "shift t / (1 - t), t = (1 - i / N) sigma_max / (shift + sigma_max)", "down to 0", f"{FLOW}; {SD3}, eq. 23"
    ),
    "ddpm": Entry("", "the levels of DDPM's linear betas in the range, respaced", DDPM_),
    "time": Entry("", "even in the time of the row's `schedule`", SONG),
    "log_snr": Entry(GEOMETRIC, "even in the log-SNR, over VP's range", f"{DPM}, sec. 3.4"),
    "exponential": Entry(GEOMETRIC, "the same over EDM's range", "as in k-diffusion"),
    "explicit": Entry("", "the row's list `sigmas`", ""),
    "optimised": Entry(
        "", "fitted to the model: least error of Euler's steps along its own trajectories", "2405.11326; 2106.03802"
    ),
}

SPACING = {  # the index, from the lowest up, among K levels
    "linspace": Entry("round((N - 1 - i) (K - 1) / (N - 1))", source=f"{IDDPM}, sec. 4"),
    "leading": Entry("(N - 1 - i) floor(K / N)", source=f"{DDIM_}, app. D.2"),
    "trailing": Entry("round((N - i) K / N) - 1", source="2305.08891, sec. 3.3"),
}

TARGET = {  # what F stands for, by the target's function: words, c_skip, c_out, source
    "unit_variance": (
        "what has unit variance",
        "sd^2 / (sigma^2 + sd^2)",
        "sigma sd / sqrt(sigma^2 + sd^2)",
        f"{EDM}, eq. 7",
    ),
    "eps": ("n", "1", "-sigma", DDPM_),
    "score": ("-n, sigma times the score", "1", "sigma", SONG),
    "x0": ("x0", "0", "1", DDPM_),
    "v": (
        "v = (n - sigma x0) / sqrt(1 + sigma^2)",
        "1 / (1 + sigma^2)",
        "-sigma / sqrt(1 + sigma^2)",
        "2202.00512, app. D",
    ),
    "velocity": ("n - x0", "1 / (1 + sigma)", "-sigma / (1 + sigma)", FLOW),
}

LEVEL = "number of the nearest of the {} betas' levels"
NETWORK_PATH = {  # what F is told, by the path's function: words, c_in, c_noise (a formula, or words), source
    "edm_path": ("EDM", "1 / sqrt(sigma^2 + sd^2)", "ln(sigma) / 4", f"{EDM}, eq. 7"),
    "ve_path": ("VE", "1", "ln(sigma / 2)", SONG),
    "vp_path": ("VP", "1 / sqrt(1 + sigma^2)", "(M - 1) (sqrt(b_min^2 + 2 b_d ln(1 + sigma^2)) - b_min) / b_d", SONG),
    "flow_path": ("flow", "1 / (1 + sigma)", "sigma / (1 + sigma)", FLOW),
    "iddpm_path": ("cosine betas", "1 / sqrt(1 + sigma^2)", LEVEL.format("cosine"), f"{EDM}, Table 1"),
    "ddpm_path": ("linear betas", "1 / sqrt(1 + sigma^2)", LEVEL.format("linear"), DDPM_),
}

NOISE = {  # sigma of u in (0, 1); q is the normal distribution's quantile
    "lognormal": Entry("exp(P_mean + P_std q(u))", "ln sigma is normal", EDM),
    "vp_uniform": Entry(f"{VP_SIGMA}, t = eps_t + u (1 - eps_t)", "VP's time is uniform", f"{SONG}; {EDM}, Table 1"),
    "ve_loguniform": Entry("0.02 (100 / 0.02)^u", "ln sigma is uniform", SONG),
    "iddpm_uniform": Entry("", "each level of the cosine betas alike", f"{IDDPM}; {EDM}, Table 1"),
    "ddpm_uniform": Entry("", "each level of the linear betas alike", DDPM_),
    "flow_uniform": Entry("shift u / (1 - u)", "the flow's t is uniform, ln sigma logistic", f"{FLOW}; {SD3}, eq. 23"),
    "logit_normal": Entry("shift exp(logit_mean + logit_std q(u))", "logit t is normal", f"{SD3}, eq. 19"),
    "mode": Entry("shift t / (1 - t), t = u - mode_scale (sin(pi u / 2)^2 - u)", "", f"{SD3}, eq. 20"),
    "cosmap": Entry("shift tan(pi u / 2)", "the cosine schedule's", f"{SD3}, eq. 21"),
}

DRAW = {
    "independent": Entry("", "each u by itself", ""),
    "stratified": Entry("", "one u in each of as many equal stretches as the batch has images", "2107.00630, app. I.1"),
    "adaptive": Entry(
        "",
        "more where the loss is large, with less weight on each: the objective stays",
        f"{IDDPM}, eq. 18; 2303.00848",
    ),
}

WEIGHTING = {  # lambda of sigma, on D
    "unit": Entry("1 / c_out^2", "1 on what the network predicts, as each method was published", f"{EDM}, Table 1"),
    "edm": Entry("(sigma^2 + sd^2) / (sigma sd)^2", source=f"{EDM}, Table 1"),
    "snr": Entry("1 / sigma^2", source=DDPM_),
    "truncated_snr": Entry("max(1 / sigma^2, 1)", source="2202.00512, sec. 4"),
    "min_snr": Entry("min(1 / sigma^2, gamma)", source="2303.09556"),
    "soft_min_snr": Entry("1 / (sigma^2 + sd^2)", source="2401.11605"),
    "p2": Entry("1 / (sigma^2 (k + 1 / sigma^2)^gamma)", source="2204.00227, eq. 8"),
    "sigmoid": Entry("1 / (sigma^2 + exp(-bias))", source="after 2303.00848"),
    "uniform_x0": Entry("1", "1 on x0", "2202.00512"),
    "uniform_eps": Entry("1 / sigma^2", "1 on eps", DDPM_),
    "uniform_v": Entry("(1 + sigma^2) / sigma^2", "1 on v", "2202.00512"),
    "uniform_velocity": Entry("(1 + sigma)^2 / sigma^2", "1 on the flow's velocity", FLOW),
    "uniform_score": Entry("1 / sigma^4", "1 on the score", SONG),
    "vlb": Entry("snr_rate / 2", "the variational bound, snr_rate = -d(1 / sigma^2) / du", "2107.00630, eq. 17"),
    "uncertainty": Entry("1 / c_out^2", "over e^u, with u(sigma) learned beside the network", f"{EDM2}, eq. 21 to 23"),
}

PAIR = {
    "independent": Entry("", "each image's noise drawn by itself", ""),
    "optimal_transport": Entry("", "the least sum of squared distances within a batch", "2302.00482; 2304.14772"),
    "reflow": Entry("", "noise with what the flow in `base` made of it", FLOW),
}

SOLVER = {  # r = sigma_next / sigma, h a step, d the slope dx/dt, lambda = -ln sigma
    "euler": Entry("", "x + h d", f"{SONG}; {EDM}"),
    "heun": Entry(
        "", "x + h ((1 - 1 / (2 alpha)) d + d' / (2 alpha)), d' at t + alpha h", f"{EDM}, Algorithms 1 and 3"
    ),
    "midpoint": Entry("", "`heun` with `alpha` 1/2: the slope halfway", f"{EDM}, Algorithm 3"),
    "rk4": Entry("", "x + h (d_1 + 2 d_2 + 2 d_3 + d_4) / 6", "Kutta 1901"),
    "dpm_solver_2": Entry("", "z + (sigma_next - sigma) eps at the middle in lambda", f"{DPM}, Algorithm 1"),
    "dpmpp_2s": Entry("", "r z + (1 - r) D at the middle in lambda", f"{DPMPP}, Algorithm 1"),
    "rk45": Entry("", "Dormand and Prince's pair, with steps of its own", SONG),
    "dpmpp_2m": Entry("", "r z + (1 - r) (D + its difference from the last / (2 r_0))", f"{DPMPP}, Algorithm 2"),
    "dpmpp_3m": Entry("", "the same with three points, as released", f"{DPMPP}, the authors' code"),
    "exp_adams": Entry(
        "", "a polynomial for D in lambda, integrated against e^lambda", "doi 10.1017/S0962492910000048"
    ),
    "unipc": Entry(
        "", "a predictor, and a corrector by the evaluation that is made anyway", "2302.04867, Algorithms 5, 6"
    ),
    "deis": Entry("", "a polynomial for eps in t, integrated against d sigma / dt", f"{DEIS}, eq. 15"),
    "ipndm": Entry(
        "", "z + (sigma_next - sigma) times Adams and Bashforth's mean of eps", f"{DEIS}, eq. 41; 2202.09778"
    ),
    "lms": Entry("", "Adams and Bashforth's method for dx/dt, for steps of any lengths", "as in k-diffusion"),
    "ddim": Entry(
        "",
        "D + sqrt(sigma_next^2 - up^2) (z - D) / sigma + up n, up = eta sigma_next sqrt(1 - r^2)",
        f"{DDIM_}, eqs. 12 and 16",
    ),
    "ddpm": Entry("", "r^2 z + (1 - r^2) D + noise of `variance`", f"{DDPM_}, sec. 3.2"),
    "euler_maruyama": Entry(
        "", "Euler's step on the reverse SDE, Langevin's steps after it", f"{SONG}, Algorithm 1; {EDM}, eq. 6"
    ),
    "dpmpp_2m_sde": Entry("", "r^2 z + (1 - r^2) (D + h D' / 2) + sigma_next sqrt(1 - r^2) n", f"{DPMPP}, sec. 5"),
}

VARIANCE = {
    "beta_tilde": Entry(
        "r^2 (sigma^2 - sigma_next^2), r = sigma_next / sigma", "the posterior's", f"{DDPM_}, sec. 3.2"
    ),
    "beta": Entry("(sigma^2 - sigma_next^2) (1 + sigma_next^2) / (1 + sigma^2)", "", f"{DDPM_}, sec. 3.2"),
}

CHURN = {  # keys of their own, before the steps of any deterministic solver that takes fixed steps one at a time
    "S_churn": Entry("", "sigma is raised to (1 + g) sigma, g = min(S_churn / N, sqrt(2) - 1)", f"{EDM}, Algorithm 2"),
    "S_min": Entry("", "while S_min <= sigma <= S_max", f"{EDM}, Algorithm 2"),
    "S_max": Entry("", "the same", f"{EDM}, Algorithm 2"),
    "S_noise": Entry("", "the standard deviation of the noise added", f"{EDM}, Algorithm 2"),
}

GUIDE = {
    "unconditional": Entry("D_u + w (D - D_u)", "D_u: the model without label", "2207.12598, eq. 6"),
    "snapshot": Entry("D_u + w (D - D_u)", "D_u: an earlier snapshot of the same training", "2406.02507, eq. 2"),
    "classifier": Entry("D + w sigma^2 g", "g = grad_z log p(y | z; sigma), D without label", "2105.05233, eq. 14"),
}

AVERAGE = {  # by the key of a model row: what stays of an average in step k (1, 2, ...) of B images
    "ema_halflife_images": Entry("2^(-B / h)", "h: the half-life", f"{EDM}, app. F.2"),
    "ema_ramp_up": Entry("", "h is at most this share of the images seen so far", f"{EDM}, app. F.2"),
    "ema_halflives_images": Entry("", "further averages, kept beside the model's own", ""),
    "ema_sigma_rels": Entry(
        "(1 - 1 / k)^(gamma + 1)",
        "gamma such that the average is `sigma_rel` of the training wide",
        f"{EDM2}, sec. 3.1",
    ),
    "snapshots": Entry(
        "", "times at which all averages are kept, from which other lengths are made", f"{EDM2}, sec. 3.2"
    ),
}

AUGMENT = {
    "augment": Entry(
        "", "EDM's geometric augmentations, each so probable, which the network is told", f"{EDM}, app. F.2"
    ),
    "flip": Entry("", "mirrored images, which the network is not told", DDPM_),
}

NETWORK = {
    "unet": Entry("", "a compact U-Net, scaled and shifted by the embedding", f"after {SONG}"),
    "ddpmpp": Entry("", "DDPM++ in EDM's setting", f"{SONG}; {EDM}, app. F.2"),
    "dit": Entry("", "a transformer on patches, adaLN-Zero", "2212.09748"),
    "mlp": Entry("", "for points: DiT's blocks without attention", "after 2212.09748"),
}

EMBEDDING = {
    "positional": Entry("", "sines and cosines of c_noise at geometric frequencies from 1 to 1e-4", "1706.03762"),
    "fourier": Entry("", "at random frequencies of standard deviation 16", f"2006.10739; {SONG}"),
}

DECAY = {  # a factor, at step k of K, of B images each
    "cosine": Entry("(1 + cos(pi k / K)) / 2", source="1608.03983, eq. 5"),
    "linear": Entry("1 - k / K"),
    "inverse_sqrt": Entry("1 / sqrt(max(k B / t_ref, 1))", source=f"{EDM2}, eq. 67"),
    "none": Entry("1"),
}

CONSTANTS = (
    f"b_d = {VP_BETA_D}, b_min = {VP_BETA_MIN} (unless solved again for a row's range), eps_s = {EPS_S:g}, "
    f"eps_t = {EPS_T:g}, M = {VP_STEPS}, C_2 = {IDDPM_C2:g}; sd is `sigma_data`, measured on the data set; q is the "
    "normal distribution's quantile; N steps, i = 0 .. N - 1"
)

METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of EDM's Table 1: a model row and a curve row each
    "VP (DDPM)": (
        {"parametrization": "vp", "noise": "vp_uniform"},
        {"solver": "euler", "discretization": "vp", "schedule": "vp"},
    ),
    "VE (NCSN++)": (
        {"parametrization": "ve", "noise": "ve_loguniform"},
        {"solver": "euler", "discretization": "ve", "schedule": "ve"},
    ),
    "iDDPM + DDIM": (
        {"parametrization": "iddpm", "noise": "iddpm_uniform"},
        {"solver": "ddim", "discretization": "iddpm"},
    ),
    "EDM": ({}, {}),
    "rectified flow": (
        {"parametrization": "flow", "noise": "flow_uniform"},
        {"solver": "euler", "discretization": "flow", "schedule": "flow"},
    ),
}


@dataclass(frozen=True)
class Axis:
    """A section of the page. `names`: the code's own, which `entries` must have; `keys(name)`: what an entry goes by.

    `columns`: further columns, title to what an entry has there.
    """

    title: str
    section: str
    key: str
    names: Iterable[str]
    entries: Mapping[str, Entry]
    about: str
    formula: str = "formula"
    keys: Callable[[str], Iterable[str]] = lambda name: ()
    columns: Mapping[str, Callable[[str], str]] | None = None
    published: Callable[[str], Mapping[str, Any]] = lambda name: {}


def evaluations(name: str) -> str:
    """What N steps of a solver cost, as a formula in N: read off what 2 and 3 steps do."""
    solver = Sampler(solver=name, nfe=(100,)).build_solver()
    if solver.adaptive:
        return f"{solver.evaluations(2)} or more"
    slope = solver.evaluations(3) - solver.evaluations(2)
    offset = solver.evaluations(2) - 2 * slope
    return f"{slope if slope > 1 else ''}N" + (f" {'-' if offset < 0 else '+'} {abs(offset)}" if offset else "")


def _solver(name: str, what: str) -> str:
    solver = Sampler(solver=name, nfe=(100,)).build_solver()
    if what == "noise":
        return "yes" if solver.stochastic else "no"
    found = getattr(solver, what)
    return "its own" if found is None else str(found)


def _range_of_grid(name: str) -> str:
    grid = DISCRETIZATIONS[name]
    return "the list's" if name == "explicit" else f"{grid.sigma_min:.4g} to {grid.sigma_max:.5g}"


def _parametrization(name: str) -> Entry:
    words, _, _, source = TARGET[PARAMETRIZATIONS[name].target.__name__]
    path, _, _, path_source = NETWORK_PATH[PARAMETRIZATIONS[name].path.__name__]
    sources = dict.fromkeys([source, path_source])
    return Entry("", f"F stands for {words}; path: {path}", "; ".join(sources))


def coefficients(name: str) -> dict[str, str]:
    """The four coefficients of a parametrization as formulas, or in words."""
    _, c_skip, c_out, _ = TARGET[PARAMETRIZATIONS[name].target.__name__]
    _, c_in, c_noise, _ = NETWORK_PATH[PARAMETRIZATIONS[name].path.__name__]
    return {"c_skip": c_skip, "c_out": c_out, "c_in": c_in, "c_noise": c_noise}


def _code(text: str) -> str:
    return f"`{text}`" if text and not text.startswith(LEVEL.split("{")[0]) else text


def _coefficient(key: str, name: str) -> str:
    return _code(coefficients(name)[key])


def _published_weighting(name: str) -> dict[str, Any]:
    parameters = signature(WEIGHTINGS[name].function).parameters
    return {key: parameters[key].default for key in WEIGHTINGS[name].optional}


AXES = (
    Axis(
        "Solvers",
        "curves",
        "solver",
        SOLVERS,
        SOLVER,
        "In z = x0 + sigma n, or in x = s z where a solver steps in t, and `schedule` and `scaling` matter. The last "
        "step, into sigma = 0, is Euler's. How each was checked, and where others count otherwise: "
        "[samplers](samplers.md).",
        "step",
        keys_of,
        {
            "steps in": lambda n: _solver(n, "variable"),
            "order": lambda n: _solver(n, "order"),
            "NFE": evaluations,
            "adds noise": lambda n: _solver(n, "noise"),
        },
    ),
    Axis("Variances of `ddpm`", "curves", "variance", VARIANCES, VARIANCE, "Of the noise that a step adds."),
    Axis(
        "Churn",
        "curves",
        "",
        CHURN,
        CHURN,
        "Noise before the steps of any deterministic solver that takes fixed steps one at a time; keys of their own.",
        keys=lambda n: (n,),
    ),
    Axis(
        "Schedules",
        "curves",
        "schedule",
        SCHEDULES,
        SCHEDULE,
        "The time t in which the ODE dx/dt = (s'/s + sigma'/sigma) x - (sigma' s / sigma) D(x / s; sigma) is solved. "
        "Any goes with any grid.",
        "sigma(t)",
        columns={"scaling unless given": lambda n: f"`{SCALING_OF_SCHEDULE[n]}`"},
    ),
    Axis("Scalings", "curves", "scaling", SCALINGS, SCALING, "x = s z.", "s(sigma)"),
    Axis(
        "Grids",
        "curves",
        "discretization",
        DISCRETIZATIONS,
        GRID,
        "N falling noise levels, then 0. `sigma_min` and `sigma_max` set another range.",
        "sigma_i",
        lambda n: [key for key in DISCRETIZATIONS[n].keys if key in Sampler.model_fields],
        {"range": _range_of_grid},
    ),
    Axis(
        "Spacings of DDPM's levels",
        "curves",
        "spacing",
        SPACINGS,
        SPACING,
        "Which of the K levels in the range, counted from the lowest.",
        "index",
    ),
    Axis(
        "Parametrizations",
        "models",
        "parametrization",
        PARAMETRIZATIONS,
        {name: _parametrization(name) for name in PARAMETRIZATIONS},
        "D(z; sigma) = c_skip z + c_out F(c_in z, c_noise), F being the network.",
        "what it is",
        columns={key: partial(_coefficient, key) for key in ("c_skip", "c_out", "c_in", "c_noise")},
    ),
    Axis(
        "Training noise",
        "models",
        "noise",
        NOISES,
        NOISE,
        "Each as its quantile function: sigma for a uniform u.",
        "sigma(u)",
        keys_of_noise,
    ),
    Axis("Draws", "models", "draws", DRAWS, DRAW, "How the u of a batch are drawn.", "what it is"),
    Axis(
        "Loss weightings",
        "models",
        "weighting",
        WEIGHTINGS,
        WEIGHTING,
        "The loss is the mean of lambda(sigma) (D - x0)^2.",
        "lambda(sigma)",
        lambda n: sorted(WEIGHTINGS[n].optional),
        published=_published_weighting,
    ),
    Axis(
        "Pairs",
        "models",
        "pairs",
        PAIRS,
        PAIR,
        "Which noise goes with which image.",
        "what it is",
        lambda n: ("reflow_pairs",) if n == "reflow" else (),
    ),
    Axis("Augmentation", "models", "", AUGMENT, AUGMENT, "Keys of their own.", "what it is", lambda n: (n,)),
    Axis(
        "Guidance",
        "curves",
        "guide",
        GUIDES,
        GUIDE,
        "w is `guidance`, where `guidance_min` < sigma <= `guidance_max` (2404.07724). Both calls count.",
        "D_w",
        lambda n: ("guidance", *(("guide_images",) if n == "snapshot" else ())),
    ),
    Axis(
        "Averages of the weights",
        "models",
        "",
        AVERAGE,
        AVERAGE,
        "Keys of a model row; curves choose one by `ema_halflife_images` or `ema_sigma_rel`.",
        "what a step leaves of it",
        lambda n: (n,),
    ),
    Axis(
        "Networks",
        "models",
        "network",
        NETWORKS,
        NETWORK,
        "What they are made of, labels and checkpoints: [networks](networks.md).",
        "what it is",
        lambda n: KEYS[n],
    ),
    Axis("Noise embeddings", "models", "embedding", EMBEDDINGS, EMBEDDING, "How c_noise is told.", "what it is"),
    Axis(
        "Learning-rate decays",
        "models",
        "learning_rate_decay",
        DECAYS,
        DECAY,
        "A factor of `learning_rate` at step k of K, of B images each.",
        "factor",
        lambda n: ("learning_rate_reference_images",) if n == "inverse_sqrt" else (),
    ),
)


@cache
def _properties(schema: type[Row]) -> dict[str, Any]:
    """The JSON Schema of a row's keys."""
    whole = schema.model_json_schema()
    return whole["$defs"][whole["$ref"].rpartition("/")[2]]["properties"] if "$ref" in whole else whole["properties"]


def takes(schema: type[Row], key: str) -> str:
    """What a key of a row takes: names, or numbers and their range."""
    return _takes(_properties(schema)[key])


def _takes(part: dict[str, Any]) -> str:
    if "anyOf" in part:
        return " or ".join(_takes(option) for option in part["anyOf"])
    if "enum" in part or "const" in part:
        return ", ".join(f"`{value}`" for value in part.get("enum", [part.get("const")]))
    kind = part.get("type", "")
    if kind == "array":
        item = _takes(part.get("items", {}))
        return f"a list: {item}"
    if kind == "string":
        return "a name" if part.get("pattern", "").startswith("^[A-Za-z") else "text"
    if kind == "null":
        return "null"
    words = {"integer": "whole", "number": "number"}.get(kind, kind)
    low = [f"> {part['exclusiveMinimum']:g}"] if "exclusiveMinimum" in part else []
    low += [f">= {part['minimum']:g}"] if "minimum" in part else []
    high = [f"< {part['exclusiveMaximum']:.4g}"] if "exclusiveMaximum" in part else []
    high += [f"<= {part['maximum']:.10g}"] if "maximum" in part else []
    many = [f"a multiple of {part['multipleOf']}"] if "multipleOf" in part else []
    return ", ".join([words, *low, *high, *many])


def default(schema: type[Row], key: str) -> str:
    """A key's default as params.yaml has it."""
    field = schema.model_fields[key]
    return "required" if field.is_required() else _yaml(field.default)


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


SCHEMAS: dict[str, type[Row]] = {"models": Model, "curves": Curve}


def _orders(solver: str) -> str:
    """The orders that a solver has."""

    def has(order: int) -> bool:
        try:
            SOLVERS[solver](order=order)
        except ValueError:
            return False
        return True

    return ", ".join(str(order) for order in range(1, 10) if has(order))


def keys_text(axis: Axis, name: str) -> str:
    """The keys that an entry goes by: each with its default and what it takes."""
    schema, published = SCHEMAS[axis.section], axis.published(name)

    def told(key: str) -> str:
        value = published.get(key, schema.model_fields[key].default)
        return f"`{key}: {_yaml(value)}` ({_orders(name) if key == 'order' else takes(schema, key)})"

    return "<br>".join(map(told, axis.keys(name)))


def linked(source: str) -> str:
    """A source with its arXiv numbers as links."""
    source = re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", source)
    return re.sub(r"doi (10\.\S+)", r"[doi \1](https://doi.org/\1)", source)


def table(titles: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|" for cells in lines)


def section(axis: Axis) -> str:
    """An axis as a heading, a sentence and a table."""
    columns = dict(axis.columns or {})
    entries = {name: axis.entries[name] for name in axis.names}
    keyed = any(axis.keys(name) for name in entries)
    head = [f"`{axis.key}`" if axis.key else "key", axis.formula, *columns, *(["keys"] if keyed else []), "source"]
    rows = []
    for name, entry in entries.items():
        said = "; ".join(filter(None, [_code(entry.formula), entry.words]))
        chosen = [column(name) for column in columns.values()]
        own = SCHEMAS[axis.section].model_fields[axis.key].default if axis.key else None
        shown = f"`{name}`" + (" (default)" if name == own else "")
        rows.append([shown, said, *chosen, *([keys_text(axis, name)] if keyed else []), linked(entry.source)])
    where = f"In `{axis.section}`" + (f", key `{axis.key}`. " if axis.key else ". ")
    return f"## {axis.title}\n\n{where}{linked(axis.about)}\n\n{table(head, rows)}\n"


def methods_table() -> str:
    """EDM's Table 1, with rectified flow: what each method is made of, in this repository's names."""
    models = {name: Model(**model) for name, (model, _) in METHODS.items()}
    curves = {name: Sampler(**curve).filled() for name, (_, curve) in METHODS.items()}

    def line(title: str, cell: Callable[[str], str]) -> list[str]:
        return [title, *(cell(name) for name in METHODS)]

    def shown(entries: Mapping[str, Entry], name: str) -> str:
        return f"`{name}`<br>{_code(entries[name].formula) or entries[name].words}"

    def coefficient(key: str) -> list[str]:
        return line(key, lambda n: _coefficient(key, models[n].parametrization))

    rows = [
        line("`solver`", lambda n: shown(SOLVER, curves[n].solver)),
        line("`discretization`", lambda n: shown(GRID, curves[n].discretization)),
        line("`schedule`", lambda n: shown(SCHEDULE, curves[n].schedule)),
        line("`scaling`", lambda n: shown(SCALING, str(curves[n].scaling))),
        line("`parametrization`", lambda n: f"`{models[n].parametrization}`"),
        *map(coefficient, ("c_skip", "c_out", "c_in", "c_noise")),
        line("`noise`", lambda n: shown(NOISE, models[n].noise)),
        line("`weighting`", lambda n: shown(WEIGHTING, models[n].weighting)),
        line("model row", lambda n: f"`{_row(METHODS[n][0])}`"),
        line("curve row", lambda n: f"`{_row(METHODS[n][1])}`"),
    ]
    return table(["", *METHODS], rows)


def _row(row: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in row.items()) + "}"


def keys_table(schema: type[Row], meanings: Mapping[str, str]) -> str:
    """Every key of a row: what it takes, its default, what it is and the axis that the report files it under."""
    rows = [
        [f"`{key}`", takes(schema, key), f"`{default(schema, key)}`", meanings[key], field.title or ""]
        for key, field in schema.model_fields.items()
        if key not in FILLED_IN
    ]
    return table(["key", "takes", "default", "what it is", "filed under"], rows)


def page() -> str:
    """The whole page."""
    parts = [
        "# The design space\n",
        "Every choice that a row of params.yaml may make, with its formula, source and keys. This page is written by "
        "`make docs` from the code's own tables (`pipeline/design_space.py`), and a test holds its formulas against "
        "the code: edit those, not this.\n",
        f"Everything is in EDM's coordinates: z = x0 + sigma n, D(z; sigma) the denoiser. {CONSTANTS}.\n",
        "## EDM's table, and rectified flow\n",
        "What each method is made of ([2206.00364](https://arxiv.org/abs/2206.00364), Table 1), as it was published, "
        "and the rows that say so. Any cell goes with any other, but for what is refused in one line.\n",
        methods_table() + "\n",
        *map(section, AXES),
        "## Keys of a model row\n",
        "A row may also name its `base`, another row, whose choices it has.\n",
        keys_table(Model, MODEL) + "\n",
        "## Keys of a curve row\n",
        keys_table(Curve, CURVE) + "\n",
        "## Where to read on\n",
        "- [Training choices](training.md): what each computes, costs and refuses.\n"
        "- [Samplers](samplers.md): orders, costs, and whom they agree with.\n"
        "- [Networks](networks.md): networks, labels, guidance, averages of the weights, the loop.\n"
        "- [How results are measured](measurement.md).\n"
        "- [A new entry](../CONTRIBUTING.md) is one function and one line.",
    ]
    return "\n".join(parts) + "\n"
