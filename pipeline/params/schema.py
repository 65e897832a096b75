"""A JSON Schema of study files as they are written, by which editors complete, explain and check every key.

Types, names, limits and defaults are those of the models that validate a study; what a key is for is said here.
"""

import json
from typing import Any

from pipeline.common.rows import NAME, Row
from pipeline.data.dataset import Data
from pipeline.evaluation.imageset import ImageSet
from pipeline.metrics.extractors.extractor import Features
from pipeline.params.needs import Needs
from pipeline.params.study import Curve, Published, Study, StudyInfo
from pipeline.sampling.solvers import SOLVERS
from pipeline.training.row import Model

FILE = "params.schema.json"
DRAFT = "http://json-schema.org/draft-07/schema#"  # the one that editors know best
DIFFERENT = ("nfe", "train_seeds", "sample_seeds")  # lists in which nothing stands twice

STUDY = {
    "title": "The report's title",
    "study": "Names of the study, which dvc.yaml goes by",
    "preset": "The preset that holds; none unless given",
    "presets": "Scales of the study; what one says is laid over the sections below, key by key",
    "needs": "What the study needs of the machine that runs it",
    "data": "The data set",
    "features": "What distances between images are measured with",
    "defaults": "What all rows of a section have unless they, or their bases, say otherwise",
    "models": "One training each; a row says how it differs from its base. The first row is the baseline",
    "curves": "One sampler row on one model each, over budgets of network evaluations. The first row is the baseline",
    "sets": "Images from anywhere else, measured beside the curves; {} for none",
    "published": "Values that others published, which the report sets beside those of this study's curves",
}
NEEDS = {"gpu_gib": "The memory that a GPU must have, in GiB; 0: none is needed"}
PRESET = {key: STUDY[key] for key in ("needs", "data", "features", "defaults")}
PUBLISHED = {
    "curve": "The curve of this study that does what was published",
    "nfe": "Evaluations of the published value",
    "value": "The published FID",
    "what": "What was measured: method, network, setting",
    "source": "Where it stands: authors, year, arXiv number, table",
    "images": "Images that the published network was trained on",
}
NAMES = {
    "name": "Folder names: reports/<name>, build/<name>",
    "root": "The way from this study's dvc.yaml to the repository's root",
    "params": "The way from the repository's root to this file",
}
DATA = {
    "source": "digits; cifar10 (downloaded); points: two_moons, spiral, checkerboard, mixture; else a folder or .zip "
    "of images of one size, or a copy of CIFAR-10's .tar.gz",
    "limit": "Only the first so many images",
    "labels": "Whether classes are read (class folders, or dataset.json)",
}
FEATURES = {
    "extractor": "classifier (trained on the data), inception (FID), dinov2, module (your own); for points coordinates",
    "weights": "The extractor's file: of inception or module",
    "hash": "How the sha256 of that file begins",
    "width": "Channels of the classifier, and so the number of features",
    "epochs": "How often the classifier sees the data set",
    "batch": "Images a step of the classifier's training",
    "learning_rate": "Of the classifier",
    "seed": "Of the classifier's training",
}
MODEL = {
    "base": "The row that this one takes everything else from, and is compared with; the section's first one unless "
    "given, of which then nothing is taken",
    "parametrization": "What the network predicts, on which path: edm; on VP's path vp (eps), vp_x0, vp_v, with DDPM's "
    "own levels ddpm (linear betas), iddpm (cosine); ve; on the straight path flow (velocity), flow_eps, flow_x0",
    "noise": "The distribution of training noise over sigma",
    "P_mean": "The mean of ln sigma, of noise: lognormal; proposed.yaml, beside a report, has one for your data",
    "P_std": "The standard deviation of ln sigma, of noise: lognormal; proposed.yaml has one, too",
    "shift": "The factor by which the flow's sigmas are multiplied: of flow_uniform, logit_normal, mode, cosmap",
    "logit_mean": "Of noise: logit_normal",
    "logit_std": "Of noise: logit_normal",
    "mode_scale": "Of noise: mode",
    "draws": "How noise levels are drawn: each by itself, one from each stratum, or more where the loss is",
    "weighting": "lambda(sigma) on D: unit is 1 / c_out^2, with which each method was published",
    "gamma": "Of weighting: min_snr, p2; as published unless given",
    "k": "Of weighting: p2; as published unless given",
    "bias": "Of weighting: sigmoid; as published unless given",
    "pairs": "Which noise goes with which image: any, matched in a batch, or what the flow named in base made of it",
    "reflow_pairs": "How many pairs reflow takes from its base",
    "augment": "The probability of each of EDM's non-leaky augmentations",
    "flip": "The probability of mirroring an image, which the network is not told",
    "sigma_data": "The data's standard deviation; measured unless given",
    "labels": "Whether the network is told classes",
    "label_dropout": "The share of labels hidden in training, so that it can do without",
    "network": "unet, ddpmpp, dit for images; mlp for points",
    "channels": "Channels of the network's first level",
    "multipliers": "Channels by level, as multiples; each further level halves the image: unet, ddpmpp",
    "blocks": "Blocks a level, or layers",
    "attention": "Heights, in pixels, of the levels that have attention: ddpmpp",
    "patch": "Side of a patch, in pixels: dit",
    "embedding": "How the network is told the noise level",
    "equal": "Find the channels with which the network costs what the base's does",
    "dropout": "The probability of dropping a feature",
    "images": "The training's length",
    "batch": "Images a step",
    "micro_batch": "Images at a time, where a whole batch does not fit into memory",
    "learning_rate": "Adam's, at its highest",
    "warmup_images": "Images over which the learning rate rises from 0",
    "learning_rate_decay": "How the learning rate falls",
    "learning_rate_reference_images": "Where inverse_sqrt begins to fall",
    "clip_norm": "The largest norm that the gradient may have",
    "precision": "What the network computes in",
    "compile": "default: torch.compile",
    "memory_format": "How images lie in memory",
    "ema_halflife_images": "The half-life of the weights' average",
    "ema_ramp_up": "The largest share of the images so far that the half-life may be; null: no ramp-up",
    "ema_halflives_images": "Further averages, for curves to choose from by ema_halflife_images",
    "ema_sigma_rels": "Further averages, of power functions, for curves to choose from by ema_sigma_rel",
    "snapshots": "How many states of the averages are kept, to guide by or to make other averages from",
    "classifier_images": "Also train a noise-aware classifier that can guide, on so many images; 0: none",
    "train_seeds": "One training for each",
}
CURVE = {
    "base": MODEL["base"],
    "model": "A row of models; every curve says it itself",
    "method": "A name for the headline figure",
    "solver": "How the ODE or SDE is stepped through",
    "order": "Of unipc (2, 3), exp_adams, deis, ipndm, lms (1 to 4)",
    "alpha": "Of heun: 1 Heun, 2/3 Ralston, 1/2 midpoint",
    "eta": "Of ddim: 0 DDIM, 1 DDPM's ancestral sampler",
    "variance": "Of ddpm",
    "diffusion": "Of euler_maruyama: 0 the ODE, 1 the reverse SDE",
    "corrector_steps": "Of euler_maruyama: Langevin steps after each step",
    "corrector_snr": "Of euler_maruyama: the size of Langevin steps",
    "rtol": "Of rk45",
    "atol": "Of rk45",
    "S_churn": "EDM's churn, before the steps of a deterministic solver that takes fixed steps one at a time",
    "S_min": "The lowest sigma with churn",
    "S_max": "The highest sigma with churn",
    "S_noise": "The scale of churn's noise",
    "discretization": "The grid of noise levels",
    "rho": "Of discretization: edm",
    "shift": "Of discretization: flow",
    "spacing": "Of discretization: ddpm",
    "sigmas": "The falling list of discretization: explicit",
    "sigma_min": "The lowest noise level above 0; as published with the grid unless given",
    "sigma_max": "The highest noise level; as published with the grid unless given",
    "schedule": "sigma(t) of the ODE that is solved; any goes with any grid and solver",
    "scaling": "s(t) of the ODE that is solved; the schedule's own unless given",
    "guidance": "The guide's scale: 1 is none (of a classifier: 0)",
    "guide": "What guides: the model without label, an earlier snapshot of it, or a classifier",
    "guidance_min": "Guidance acts above this sigma",
    "guidance_max": "Guidance acts up to this sigma",
    "guide_images": "The snapshot that guides, by the images it had seen; the earliest unless given",
    "nfe": "Budgets: as many steps as cost at most so many evaluations",
    "labels": "Of a model of classes: classes as frequent as in the data, or none",
    "ema_halflife_images": "Another average of the weights than the model's own: one of its ema_halflives_images, or "
    "made from snapshots",
    "ema_sigma_rel": "Another average of the weights than the model's own: one of its ema_sigma_rels, or made from "
    "snapshots",
    "samples": "Images a measurement; the same for all curves",
    "batch": "Images at a time; auto: as many as fit into a GPU's memory",
    "precision": "What the network multiplies in",
    "compile": "default: by torch.compile, on a GPU into CUDA graphs",
    "sample_seeds": "Seeds of sampling",
    "repetitions": "Seeds of training and of sampling side by side, or each with each",
}
SETS = {
    "source": "A folder or .zip of generated images",
    "nfe": "What each of them cost, where that is known",
    "method": "A name for the figures",
}


def _keys(schema: type[Row] | type[Data], told: dict[str, str]) -> dict[str, Any]:
    """The properties of a validation model, each with what it is for; titles are those of the report's axes."""
    whole = schema.model_json_schema()
    own = whole.get("properties") or whole["$defs"][schema.__name__]["properties"]
    found = {}
    for key in (key for key in told if key in own):
        axis = schema.model_fields[key].title
        different = {"uniqueItems": True} if key in DIFFERENT else {}
        rest = {name: value for name, value in own[key].items() if name not in ("title", "$ref")}
        found[key] = ({"title": axis} if axis else {}) | {"description": told[key]} | rest | different
    return found


def _mapping(properties: dict[str, Any], required: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    needed = {"required": list(required)} if required else {}
    return {"type": "object", "properties": properties, "additionalProperties": False} | needed | more


def _section(row: dict[str, Any], told: str, least: int) -> dict[str, Any]:
    """Rows by name."""
    named = {"description": told, "type": "object", "patternProperties": {NAME: row}, "additionalProperties": False}
    return named | ({"minProperties": least} if least else {})


def study_schema() -> dict[str, Any]:
    """The JSON Schema (draft 7) of a study file as it is written: rows with their `base`, before `resolve` fills in."""
    base = {"base": {"description": MODEL["base"], "type": "string", "pattern": NAME}}
    model, curve = _keys(Model, MODEL), _keys(Curve, CURVE)
    curve["solver"]["enumDescriptions"] = [
        " ".join((SOLVERS[n].__doc__ or "").split()) for n in curve["solver"]["enum"]
    ]
    defaults = {"models": _mapping(model), "curves": _mapping(curve)}
    top = _keys(Study, STUDY)
    scaled = {
        "needs": _mapping(_keys(Needs, NEEDS)),
        "data": _mapping(_keys(Data, DATA)),
        "features": _mapping(_keys(Features, FEATURES)),
        "defaults": _mapping(defaults),
    }
    preset = {key: {"description": told} | scaled[key] for key, told in PRESET.items()}
    published = _mapping(_keys(Published, PUBLISHED), ("curve", "nfe", "value", "what", "source"))
    sections = scaled | {
        "study": _mapping(_keys(StudyInfo, NAMES), ("name",)),
        "presets": _section(_mapping(preset), STUDY["presets"], 0),
        "published": {"type": "array", "items": published},
        "models": _section(_mapping(base | model, type=["object", "null"]), STUDY["models"], 1),
        "curves": _section(_mapping(base | curve, ("model",)), STUDY["curves"], 1),
        "sets": _section(_mapping(_keys(ImageSet, SETS), ("source",)), STUDY["sets"], 0),
    }
    properties = {key: {"description": told} | sections.get(key, top[key]) for key, told in STUDY.items()}
    return {"$schema": DRAFT, "title": "A study of nfe-bench"} | _mapping(
        properties, ("study", "models", "curves", "sets")
    )


def text() -> str:
    """The schema as its file has it."""
    return json.dumps(study_schema(), indent=1, ensure_ascii=False) + "\n"
