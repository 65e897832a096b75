"""The pages made from the code, for `make docs`: docs/design-space.md and params.schema.json.

The page lists every choice of every axis. Words, formula and source come from the docstring of the choice (see
pipeline/params/descriptions.py); keys, defaults, ranges, orders and costs come from the code.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.commands.axes import AXES, COEFFICIENTS, Axis, coefficients
from pipeline.common.files import write_text
from pipeline.common.rows import MOST, Row
from pipeline.diffusion.schedule import EPS_S, EPS_T, IDDPM_C2, VP_BETA_D, VP_BETA_MIN, VP_STEPS
from pipeline.evaluation.curve import Curve
from pipeline.evaluation.given_rows import Given, MeasurementRow, PosteriorRow
from pipeline.evaluation.likelihoods import Likelihood
from pipeline.params import schema
from pipeline.params.descriptions import choices, key_descriptions
from pipeline.params.explain import FILLED_IN
from pipeline.params.places import GRAPH, STUDIES, copy_graph
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.row import Model, Upsampler

PAGE = Path("docs/design-space.md")
SECTIONS: dict[str, type[Row]] = {
    "models": Model,
    "upsampler": Upsampler,
    "autoencoders": AutoencoderRow,
    "curves": Curve,
    "likelihood": Likelihood,
    "measurements": MeasurementRow,
    "posteriors": PosteriorRow,
}
CONSTANTS = (
    f"beta_d = {VP_BETA_D}, beta_min = {VP_BETA_MIN} (unless solved for a row's noise range), eps_s = {EPS_S:g}, "
    f"eps_t = {EPS_T:g}, M = {VP_STEPS}, C_2 = {IDDPM_C2:g}; q is the quantile function of the standard normal "
    "distribution"
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


def takes(row: type[Row], key: str) -> str:
    """What a key of a row takes: names, or numbers and their range."""
    return _takes(schema.properties_of(row)[row.model_fields[key].alias or key])


def _takes(part: dict[str, Any]) -> str:
    if "anyOf" in part:
        return " or ".join(_takes(option) for option in part["anyOf"])
    if "$ref" in part:
        return "a mapping"
    if "enum" in part or "const" in part:
        return ", ".join(f"`{value}`" for value in part.get("enum", [part.get("const")]))
    kind = part.get("type", "")
    if kind == "array":
        return f"a list: {_takes(part.get('items') or part.get('prefixItems', [{}])[0])}"
    if kind == "object":
        return f"a mapping: to {_takes(part.get('additionalProperties', {}))}"
    if kind == "string":
        return "a name" if part.get("pattern", "").startswith("^[A-Za-z") else "text"
    if kind == "null":
        return "null"
    words = {"integer": "whole", "number": "number"}.get(kind, kind)
    low = [f"> {part['exclusiveMinimum']:g}"] if "exclusiveMinimum" in part else []
    low += [f">= {part['minimum']:g}"] if part.get("minimum", -MOST) > -MOST else []
    high = [f"< {part['exclusiveMaximum']:.4g}"] if "exclusiveMaximum" in part else []
    high += [f"<= {part['maximum']:.10g}"] if part.get("maximum", MOST) < MOST else []
    many = [f"a multiple of {part['multipleOf']}"] if "multipleOf" in part else []
    return ", ".join([words, *low, *high, *many])


def default(row: type[Row], key: str) -> str:
    """A key's default as params.yaml has it."""
    info = row.model_fields[key]
    return "required" if info.is_required() else _yaml(info.get_default(call_default_factory=True))


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _orders(solver: str) -> str:
    """The values of `order` that a solver takes."""

    def has(order: int) -> bool:
        try:
            SOLVERS[solver](order=order)
        except ValueError:
            return False
        return True

    return ", ".join(str(order) for order in range(1, 10) if has(order))


def keys_text(axis: Axis, name: str) -> str:
    """The further keys that a choice uses: each with its default and what it takes."""
    row, published = SECTIONS[axis.section], axis.published(name)

    def text(key: str) -> str:
        value = published.get(key, row.model_fields[key].default)
        return f"`{key}: {_yaml(value)}` ({_orders(name) if key == 'order' else takes(row, key)})"

    return "<br>".join(map(text, axis.keys(name)))


def linked(source: str) -> str:
    """A text with its arXiv numbers and DOIs as links."""
    source = re.sub(r"\barXiv\s(\d{4}\.\d{5})\b", r"[arXiv \1](https://arxiv.org/abs/\1)", source)
    return re.sub(r"doi (10\.[^\s,]+)", r"[doi \1](https://doi.org/\1)", source)


def _code(formula: str) -> str:
    return f"`{formula}`" if formula else ""


def table(titles: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|" for cells in lines)


def section(axis: Axis) -> str:
    """An axis as a heading, a sentence and a table; columns that would be empty are left out."""
    row = SECTIONS[axis.section]
    chosen = row.model_fields[axis.key].default if axis.key else None
    columns: dict[str, Callable[[str], str]] = {
        _code(axis.key) or "method": lambda name: f"`{name}` (default)" if name == chosen else f"`{name}`",
        "what it is": lambda name: axis.choices[name].words,
        axis.formula: lambda name: _code(axis.choices[name].formula if axis.formula else ""),
        **axis.columns,
        "keys": partial(keys_text, axis),
        "source": lambda name: linked(axis.choices[name].source),
    }
    cells = {title: [cell(name) for name in axis.choices] for title, cell in columns.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    rows = [list(cells_of_row) for cells_of_row in zip(*cells.values(), strict=True)]
    where = f"In `{axis.section}`" + (f", key `{axis.key}`. " if axis.key else ". ")
    return f"## {axis.title}\n\n{where}{linked(axis.about)}\n\n{table(list(cells), rows)}\n"


def methods_table() -> str:
    """EDM's Table 1, with rectified flow: what each method is made of, in this repository's names."""
    models = {name: Model(**model) for name, (model, _) in METHODS.items()}
    curves = {name: Sampler(**curve).filled() for name, (_, curve) in METHODS.items()}

    def line(title: str, cell: Callable[[str], str]) -> list[str]:
        return [title, *(cell(name) for name in METHODS)]

    def choice(key: str, rows: Mapping[str, Row]) -> list[str]:
        def cell(name: str) -> str:
            value = getattr(rows[name], key)
            found = choices(key)[value]
            return f"`{value}`<br>{_code(found.formula) or found.words}"

        return line(_code(key), cell)

    def coefficient(key: str) -> list[str]:
        return line(key, lambda name: _code(coefficients(models[name].parametrization)[key]))

    rows = [
        *(choice(key, curves) for key in ("solver", "discretization", "schedule", "scaling")),
        line("`parametrization`", lambda name: _code(models[name].parametrization)),
        *map(coefficient, COEFFICIENTS),
        *(choice(key, models) for key in ("noise", "weighting")),
        line("model row", lambda name: _code(_row(METHODS[name][0]))),
        line("curve row", lambda name: _code(_row(METHODS[name][1]))),
    ]
    return table(["", *METHODS], rows)


def _row(row: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in row.items()) + "}"


def keys_table(row: type[Row], without: Iterable[str] = ()) -> str:
    """Every key of a row: what it takes, its default, what it is and the axis that the report files it under.

    without: keys that are left out.
    """
    rows = [
        [_code(info.alias or key), takes(row, key), _code(default(row, key)), linked(text), info.title or ""]
        for (key, text), info in zip(key_descriptions(row).items(), row.model_fields.values(), strict=True)
        if key not in (*FILLED_IN, *without)
    ]
    return table(["key", "takes", "default", "what it is", "filed under"], rows)


def page() -> str:
    """The whole page."""
    parts = [
        "# The design space\n",
        "Every choice that a row of params.yaml can make, with its formula, source and keys. `make docs` writes this "
        "page from the docstrings in `pipeline/`, and a test evaluates the formulas and compares them with the code: "
        "edit the docstrings, not this page.\n",
        "Everything is in EDM's coordinates: z = x0 + sigma n, where n is standard normal noise. D(z; sigma) is the "
        f"denoiser and sigma_data the standard deviation of the data. {CONSTANTS}.\n",
        "## EDM's table, and rectified flow\n",
        "The parts of each method as published "
        f"({linked('arXiv 2206.00364')}, Table 1), and the rows that select them. Any cell goes with any other; the "
        "few exceptions are refused in one line.\n",
        methods_table() + "\n",
        *map(section, AXES),
        "## Keys of a model row\n",
        "A row can also name a `base`, another row from which it inherits all other keys.\n",
        keys_table(Model) + "\n",
        "## Keys of the upsampler of a model row\n",
        "For a later stage of a cascade ([latents and cascades](latents.md)).\n",
        keys_table(Upsampler) + "\n",
        "## Keys of an autoencoder row\n",
        "In whose latents models are trained, by the key `space` ([latents and cascades](latents.md)).\n",
        keys_table(AutoencoderRow) + "\n",
        "## Keys of a curve row\n",
        keys_table(Curve) + "\n",
        "## Keys of the likelihood section\n",
        "Beside these it takes the other sampler keys of a curve row, with the same defaults "
        "([likelihood](likelihood.md)).\n",
        keys_table(Likelihood, Sampler.model_fields.keys() - {"solver", "nfe"}) + "\n",
        "## Keys of a measurement row\n",
        "What is measured, y = A(x) + std n ([sampling given a measurement](given.md)).\n",
        keys_table(MeasurementRow) + "\n",
        "## Keys of a posterior row\n",
        "Beside these it takes a `base` and the other sampler keys of a curve row, with the same defaults "
        "([sampling given a measurement](given.md)).\n",
        keys_table(PosteriorRow, Sampler.model_fields.keys() - {"nfe"}) + "\n",
        "## Keys of the given section\n",
        keys_table(Given) + "\n",
        "## Further reading\n",
        "- [Training choices](training.md): how they relate, what they cost, what is refused.\n"
        "- [Samplers](samplers.md): orders, agreement with other libraries, speed.\n"
        "- [Networks](networks.md): networks, labels, guidance, averages of the weights, the training loop.\n"
        "- [How results are measured](measurement.md).\n"
        "- [How to add a choice](../CONTRIBUTING.md): one function and one line.",
    ]
    return "\n".join(parts) + "\n"


def write_docs() -> None:
    """Write what is made from other files of the repository, and print what was written.

    docs/design-space.md and params.schema.json are made from the code, dvc.yaml in studies/ from the root's.
    """
    for file, text in {PAGE: page, Path(schema.FILE): schema.text}.items():
        write_text(file, text())
        print(f"wrote {file}")
    for study in sorted(STUDIES.glob("[!.]*/params.yaml")):
        copy_graph(study.parent)
        print(f"wrote {study.parent / GRAPH}")
