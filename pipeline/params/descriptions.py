"""Descriptions of keys and choices, read from the docstrings beside them; the page, the schema and editors show them.

The docstring under a field describes a key. The docstring of a function or class describes a choice, such as a solver:
its first paragraph, and the labels `Formula:` and `Source:`, whose text may go on in indented lines. A choice that is
not a function, or that shares one, has a paragraph in the docstring under its table instead; its name comes first.
"""

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from textwrap import dedent
from types import ModuleType
from typing import Any

from pipeline.common.rows import Row
from pipeline.data import dequantization
from pipeline.diffusion import autoencoder, grids, parametrization, schedule, upsampling
from pipeline.diffusion.networks import embedding, registry
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.evaluation import likelihood
from pipeline.sampling import conditional, fitted, guidance, measurement, multistep, protocols, solvers, thresholding
from pipeline.sampling.annealed import Loop
from pipeline.training import distances, draws, hybrid, noise, objectives, optimizer, pairs, weighting

LABEL = re.compile(r"^(Formula|Source): (.*(?:\n +.*)*)", re.M)


@dataclass(frozen=True)
class Description:
    """A choice in words, its formula and its source; "" if it has none."""

    words: str
    formula: str = ""
    source: str = ""


@dataclass(frozen=True)
class Table:
    """A dictionary or tuple of choices by name, `name` in `module`; `function` is the one that describes a choice."""

    module: ModuleType
    name: str
    function: Callable[[Any], Any] = lambda choice: choice

    @property
    def objects(self) -> dict[str, Any]:
        objects = getattr(self.module, self.name)
        return objects if isinstance(objects, dict) else dict.fromkeys(objects)


TABLES = {  # of each key that takes the name of a choice
    "solver": Table(solvers, "SOLVERS"),
    "variance": Table(solvers, "VARIANCES"),
    "variant": Table(multistep, "VARIANTS"),
    "fit": Table(fitted, "FITS"),
    "told": Table(fitted, "TOLD"),
    "start": Table(fitted, "STARTS"),
    "schedule": Table(schedule, "SCHEDULES"),
    "scaling": Table(schedule, "SCALINGS"),
    "discretization": Table(grids, "DISCRETIZATIONS", lambda choice: choice.grid),
    "spacing": Table(grids, "SPACINGS"),
    "end": Table(protocols, "ENDS"),
    "first_step": Table(protocols, "FIRST_STEPS"),
    "parametrization": Table(parametrization, "PARAMETRIZATIONS"),
    "noise": Table(noise, "NOISES"),
    "draws": Table(draws, "DRAWS"),
    "objective": Table(objectives, "OBJECTIVES", lambda choice: choice.target),
    "distance": Table(distances, "DISTANCES"),
    "level_growth": Table(objectives, "LEVEL_GROWTHS"),
    "weighting": Table(weighting, "WEIGHTINGS", lambda choice: choice.function),
    "learned_variance": Table(hybrid, "LEARNED_VARIANCES"),
    "pairs": Table(pairs, "PAIRS"),
    "guide": Table(guidance, "GUIDES"),
    "threshold": Table(thresholding, "THRESHOLDS"),
    "network": Table(registry, "NETWORKS"),
    "kind": Table(autoencoder, "KINDS"),
    "augmentation": Table(upsampling, "AUGMENTATIONS"),
    "embedding": Table(embedding, "EMBEDDINGS"),
    "learning_rate_decay": Table(optimizer, "DECAYS"),
    "trace": Table(likelihood, "TRACES"),
    "dequantization": Table(dequantization, "DEQUANTIZATIONS"),
    "operator": Table(measurement, "MEASUREMENTS"),
    "posterior": Table(conditional, "ALL", lambda choice: choice.walk if isinstance(choice, Loop) else choice.answer),
}


def description(docstring: str | None) -> Description:
    """The description that a docstring holds."""
    text = inspect.cleandoc(docstring or "")
    words = re.split(r"\n\n|\n(?=Formula: |Source: )", text)[0]
    return Description(
        " ".join(words.split()), **{key.lower(): " ".join(part.split()) for key, part in LABEL.findall(text)}
    )


def docstrings(scope: type | ModuleType) -> dict[str, str]:
    """The docstring under each variable of a module, or under each field of a class, by its name."""
    tree: Any = ast.parse(dedent(inspect.getsource(scope)))
    body = tree.body[0].body if isinstance(scope, type) else tree.body
    found = {}
    for statement, below in pairwise(body):
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(below, ast.Expr):
            target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
            if isinstance(target, ast.Name) and isinstance(below.value, ast.Constant):
                found[target.id] = inspect.cleandoc(str(below.value.value))
    return found


@cache
def key_descriptions(row: type[Row]) -> dict[str, str]:
    """The description of each key of a row, inherited ones included.

    pydantic can read these itself, but would read the source of every row in every process, which takes 0.1 s.
    """
    texts: dict[str, str] = {}
    for base in reversed(row.__mro__):
        if issubclass(base, Row):
            texts |= docstrings(base)
    return {key: " ".join(texts[key].split()) for key in row.model_fields if key in texts}


@cache
def choices(key: str) -> dict[str, Description]:
    """The choices of a key of TABLES by name."""
    table = TABLES[key]
    if key == "parametrization":
        return {name: _joined(*halves(name)) for name in table.objects}
    paragraphs = docstrings(table.module).get(table.name, "").split("\n\n")
    listed = {name: description(text) for name, _, text in (part.partition(": ") for part in paragraphs)}
    return {
        name: listed[name] if name in listed else description(table.function(choice).__doc__)
        for name, choice in table.objects.items()
    }


def halves(name: str) -> tuple[Description, Description]:
    """The target and the path of a parametrization."""
    choice = PARAMETRIZATIONS[name]
    return description(choice.target.__doc__), description(choice.path.__doc__)


def _joined(target: Description, path: Description) -> Description:
    sources = dict.fromkeys([target.source, path.source])
    return Description(f"{target.words} {path.words}", f"{target.formula}; {path.formula}", "; ".join(sources))
