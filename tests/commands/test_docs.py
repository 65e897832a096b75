"""The documents: links lead somewhere, formulas are the code's, and what CONTRIBUTING tells to write works."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy
import torch
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from scipy.special import ndtri
from sympy.parsing.sympy_parser import convert_xor, implicit_multiplication, parse_expr, standard_transformations
from torch import Tensor

from pipeline.commands.axes import AXES, COEFFICIENTS, coefficients, evaluations
from pipeline.commands.docs import SECTIONS, page
from pipeline.diffusion.averages import HalfLife, Power, exponent
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.diffusion.schedule import EPS_S, EPS_T, IDDPM_C2, SCALINGS, SCHEDULES, VP_BETA_D, VP_BETA_MIN, VP_STEPS
from pipeline.params.schema import properties_of
from pipeline.sampling.grids import DISCRETIZATIONS, SPACINGS
from pipeline.sampling.guidance import GUIDES
from pipeline.sampling.multistep import VARIANTS
from pipeline.sampling.ode import Ode, RandnLike, SingleStep
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS
from pipeline.sampling.stochastic import Churned
from pipeline.sampling.thresholding import THRESHOLDS, thresholding
from pipeline.training.noise import NOISES
from pipeline.training.noise import keys_of as keys_of_noise
from pipeline.training.optimizer import DECAYS
from pipeline.training.row import Model
from pipeline.training.weighting import WEIGHTINGS
from tests.imports import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("reports/*/report.md"))]
ARXIV = r"\d\d(0[1-9]|1[0-2])\.\d{4,5}(v\d+)?"
PLAIN = {"explicit", "independent", "linear", "none"}  # too plain to need a source
AXES_BY_TITLE = {axis.title: axis for axis in AXES}


@cache
def parsed(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def inline(page: Path) -> Iterator[Token]:
    for token in parsed(page):
        yield from token.children or [token]


def links(page: Path) -> list[str]:
    """Where a page's links, images and pieces of HTML lead."""
    tokens = list(inline(page))
    found = [
        str(token.attrs.get("href") or token.attrs.get("src")) for token in tokens if {"href", "src"} & {*token.attrs}
    ]
    html = [token.content for token in tokens if token.type.startswith("html")]
    return found + [link for text in html for link in re.findall(r'(?:href|src)="([^"]*)"', text)]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them, and those written as HTML."""
    found: list[str] = []
    tokens = parsed(page)
    for opening, heading in pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(child.content for child in heading.children or [])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return {*found, *re.findall(r'(?:id|name)="([^"]+)"', page.read_text())}


def wrong(page: Path, link: str) -> str:
    """What is wrong with a link; "" where nothing is."""
    if re.match(r"[a-z][a-z0-9+.-]*:", link):
        if not re.fullmatch(r"https://[\w.-]+\.[a-z]+(/\S*)?", link):
            return "not https"
        arxiv = re.fullmatch(r"https://(?:www\.)?arxiv\.org/(.*)", link)
        return "" if not arxiv or re.fullmatch(rf"(abs|pdf)/{ARXIV}", arxiv[1]) else "no arXiv number"
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return "no such file"
    return f"no such heading in {target.name}" if anchor and anchor not in anchors(target) else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not {link: found for link in links(page) if (found := wrong(page, link))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_arxiv_numbers_have_the_right_form(page: Path) -> None:
    numbers = re.findall(r"arXiv[:\s]+(\d\S*?)[\s,.;:)\]]*(?=[\s)\]]|$)", page.read_text())
    assert not [number for number in numbers if not re.fullmatch(ARXIV, number)]


@pytest.mark.parametrize(
    ("link", "found"),
    [
        ("nowhere.md", "no such file"),
        ("../../etc/passwd", "no such file"),
        ("docs/training.md#nothing", "no such heading in training.md"),
        ("http://example.org", "not https"),
        ("https://arxiv.org/abs/2213.00001", "no arXiv number"),
        ("docs/training.md#loss-weightings", ""),
        ("https://arxiv.org/abs/2206.00364", ""),
    ],
)
def test_a_wrong_link_is_found(link: str, found: str) -> None:
    assert wrong(ROOT / "README.md", link) == found


def test_every_document_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    listed = {(index.parent / link).resolve() for link in links(index)}
    assert {*ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"} - {index} <= listed


def test_the_page_is_what_the_code_gives() -> None:
    assert (ROOT / "docs/design-space.md").read_text() == page(), "run `make docs`"


@pytest.mark.parametrize("title", AXES_BY_TITLE)
def test_every_choice_of_an_axis_has_words_and_a_source_and_no_other_is_listed(title: str) -> None:
    axis = AXES_BY_TITLE[title]
    for name, choice in axis.choices.items():
        assert choice.words, name
        assert choice.source or name in PLAIN, name
        assert "Formula:" not in choice.words and "Source:" not in choice.words + choice.formula + choice.source
    if axis.key:
        part = properties_of(SECTIONS[axis.section])[axis.key]
        assert set(next(p["enum"] for p in part.get("anyOf", [part]) if "enum" in p)) == set(axis.choices)
    for name in axis.choices:
        assert set(axis.keys(name)) <= set(SECTIONS[axis.section].model_fields)


def test_every_axis_of_names_has_its_section() -> None:
    """A key that takes names is an axis, but for settings of the loop and of the measurement."""
    settings = {"labels", "equal", "precision", "compile", "memory_format", "repetitions"}
    for section, row in SECTIONS.items():
        properties = properties_of(row).items()
        named = {key for key, part in properties if any("enum" in p for p in part.get("anyOf", [part]))}
        assert named - settings == {axis.key for axis in AXES if axis.section == section and axis.key}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_a_parametrization_has_its_four_coefficients(name: str) -> None:
    assert tuple(coefficients(name)) == COEFFICIENTS


@pytest.mark.parametrize("name", SOLVERS)
def test_what_a_solver_costs_is_what_it_counts(name: str) -> None:
    text, solver = evaluations(name), Sampler(solver=name, nfe=(100,)).build_solver()
    if solver.adaptive:
        assert text == f"{solver.evaluations(2)} or more"
    else:
        assert [evaluate(text, N=steps) for steps in (2, 5, 18)] == [solver.evaluations(steps) for steps in (2, 5, 18)]


def evaluate(formula: str, **values: Any) -> Any:
    """A formula of the page at values of its letters: "f(a, x), a = g(x)"."""
    head, *rest = re.split(r", (\w+) = ", formula)
    symbols: dict[str, Any] = {name: sympy.Symbol(name) for name in (*values, *rest[::2])}
    functions = {"max": sympy.Max, "min": sympy.Min, "q": sympy.Function("q"), "round": sympy.Function("nearest")}
    transformations = (*standard_transformations, implicit_multiplication, convert_xor)

    def of(text: str) -> sympy.Expr:
        return parse_expr(text, symbols | functions, transformations)

    expression = of(head)
    for name, text in zip(rest[::2], rest[1::2], strict=True):
        expression = expression.subs(symbols[name], of(text))
    used = sorted(expression.free_symbols, key=str)
    function = sympy.lambdify(used, expression, [{"q": ndtri, "nearest": np.rint}, "numpy"])
    return function(*(values[str(symbol)] for symbol in used))


BETAS = {"beta_d": VP_BETA_D, "beta_min": VP_BETA_MIN, "eps_s": EPS_S, "eps_t": EPS_T, "M": VP_STEPS, "C_2": IDDPM_C2}
U = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
SIGMA = torch.logspace(-2, 2, 50, dtype=torch.float64)
SD = 0.5
Check = Callable[[], tuple[Any, Any]]  # what the formula gives, and what the code gives


def checks() -> dict[tuple[str, str], Check]:
    """How each formula of the page is held against the code: by section and entry."""
    found: dict[tuple[str, str], Check] = {}

    def add(title: str, name: str, code: Callable[[], Any], formula: str | None = None, **values: Any) -> None:
        text = AXES_BY_TITLE[title].choices[name].formula if formula is None else formula
        found[title, name] = lambda: (evaluate(text, **values), code())

    low, high = DISCRETIZATIONS["vp"].sigma_min, DISCRETIZATIONS["vp"].sigma_max
    for name, schedule in SCHEDULES.items():
        add("Schedules", name, lambda s=schedule: s(low, high).sigma(U), t=U.numpy(), **BETAS)
    for name, scaling in SCALINGS.items():
        add("Scalings", name, lambda s=scaling: s.s(SIGMA), sigma=SIGMA.numpy())
    for name, grid in DISCRETIZATIONS.items():
        if not AXES_BY_TITLE["Grids"].choices[name].formula:
            continue
        ends = {"sigma_min": grid.sigma_min, "sigma_max": grid.sigma_max}
        add(
            "Grids", name, lambda g=grid, e=ends: g(8, *e.values(), rho=5.0, shift=3.0)[:-1],
            i=np.arange(8.0), N=8.0, rho=5.0, shift=3.0, **ends, **BETAS,
        )  # fmt: skip
    for name, spacing in SPACINGS.items():
        add("Spacings of DDPM's levels", name, lambda s=spacing: s(7, 100), i=np.arange(7.0), N=7.0, K=100.0)
    for name, row in PARAMETRIZATIONS.items():
        for key, text in coefficients(name).items():
            if "nearest" not in text:
                values = {"sigma": SIGMA.numpy(), "sigma_data": SD, **BETAS}
                code = lambda r=row, k=key: getattr(r(SIGMA, SD), k)  # noqa: E731
                add("Parametrizations", f"{name} {key}", code, text, **values)
    row = Model(P_mean=-0.4, P_std=1.1, shift=2.0, logit_mean=0.3, logit_std=0.8, mode_scale=0.7)
    for name, noise in NOISES.items():
        if AXES_BY_TITLE["Training noise"].choices[name].formula:
            keys = {key: getattr(row, key) for key in keys_of_noise(name)}
            add("Training noise", name, lambda n=noise, k=keys: n(U, **k), u=U.numpy(), **keys, **BETAS)
    choices = {"gamma": 3.0, "k": 2.0, "bias": 1.5}
    c_out, snr_rate = SIGMA * 0.3 + 1, SIGMA * 0.7 + 2
    for name, weighting in WEIGHTINGS.items():
        add(
            "Loss weightings", name,
            lambda w=weighting: w(SIGMA, sigma_data=SD, c_out=c_out, snr_rate=snr_rate, **choices),
            sigma=SIGMA.numpy(), sigma_data=SD, c_out=c_out.numpy(), snr_rate=snr_rate.numpy(), **choices,
        )  # fmt: skip
    ends = {name: added_variance(name) for name in ("beta_tilde", "beta")}
    for name in (*ends, "learned"):
        add("Variances of `ddpm`", name, lambda n=name: added_variance(n), sigma=2.0, sigma_next=1.5, v=0.3, **ends)
    for name, guide in GUIDES.items():
        combined = lambda g=guide: g.combined(*map(torch.tensor, (3.0, 2.0, 1.5)), 1.7)  # noqa: E731
        add("Guidance", name, combined, sigma=1.5, w=1.7, D=3.0, D_u=2.0, g=2.0)
    for name, variant in VARIANTS.items():
        add("Variants of `unipc`", name, lambda v=variant: v(0.7), h=0.7)
    thresholded = np.array([-3.0, 0.5, 1.0])
    for name in THRESHOLDS:
        function = thresholding(name, threshold_percentile=0.5)
        add("Thresholds", name, lambda f=function: f(2 * torch.tensor(thresholded)[None]), D=2 * thresholded, s=2.0)
    add("Churn", "churn", raised_sigmas, sigma=np.array([2.0, 1.0, 0.5]), S_churn=0.9, N=3.0)
    add("Averages of the weights", "half-life", lambda: HalfLife(500, None).decay(9, 64), h=500.0, B=64.0)
    add("Averages of the weights", "power function", lambda: Power(0.1).decay(8, 64), k=9.0, gamma=exponent(0.1))
    trained = Model(images=6400, batch=64, learning_rate_reference_images=1000)
    for name, decay in DECAYS.items():
        add(
            "Learning-rate decays", name, lambda d=decay: [d(trained, step) for step in range(100)],
            k=np.arange(100.0), K=100.0, B=64.0, t_ref=1000.0,
        )  # fmt: skip
    return found


def added_variance(name: str) -> float:
    """The variance of the noise that DDPM's step from sigma 2 to 1.5 adds to 0; if it is learned, v is 0.3."""
    solver, zeros = Sampler(solver="ddpm", variance=name).build_solver(), torch.zeros(1, 1, dtype=torch.float64)
    answer = torch.tensor([[0.0, 0.3][: 2 if name == "learned" else 1]], dtype=torch.float64)
    ode = Ode(lambda z, sigma: answer, SCHEDULES["linear"](0.002, 80), SCALINGS["none"])
    return float(solver.step(ode, zeros, 2.0, 1.5, torch.ones_like)) ** 2  # type: ignore[attr-defined]


def raised_sigmas() -> list[float]:
    """The noise levels that steps start from after a churn of 0.9, on the grid 2, 1, 0.5, 0."""

    class Probe(SingleStep):
        def step(self, ode: Ode, z: Tensor, sigma: float, sigma_next: float, randn_like: RandnLike) -> Tensor:
            raised.append(sigma)
            return z

    raised: list[float] = []
    ode = Ode(lambda z, sigma: z, SCHEDULES["linear"](0.002, 80), SCALINGS["none"])
    list(Churned(Probe(), 0.9, 0.0, None, 1.0).run(ode, torch.zeros(1), [2.0, 1.0, 0.5, 0.0], torch.zeros_like))
    return raised


CHECKS = checks()


def test_every_formula_is_held_against_the_code() -> None:
    """Solvers are held against theirs by the tests of their orders and of their agreement with other libraries."""
    elsewhere = ("Solvers", "Parametrizations")
    formulas = {
        (axis.title, name)
        for axis in AXES
        for name, choice in axis.choices.items()
        if choice.formula and axis.title not in elsewhere
    }
    formulas |= {
        ("Parametrizations", f"{name} {key}")
        for name in PARAMETRIZATIONS
        for key, text in coefficients(name).items()
        if "nearest" not in text
    }
    assert formulas == set(CHECKS)


@pytest.mark.parametrize("place", CHECKS, ids=" ".join)
def test_a_formula_is_the_codes(place: tuple[str, str]) -> None:
    formula, code = CHECKS[place]()
    code = torch.as_tensor(code, dtype=torch.float64).numpy()
    np.testing.assert_allclose(np.broadcast_to(formula, code.shape), code, rtol=1e-7, atol=1e-12)


def test_a_formula_that_is_another_is_found() -> None:
    assert evaluate("a sigma^2, a = 1 / (1 + t)", sigma=3.0, t=1.0) == 4.5
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(evaluate("1 / (1 + sigma)", sigma=SIGMA.numpy()), SCALINGS["vp"].s(SIGMA), rtol=1e-7)


def test_the_citation_is_of_the_1_2_0_format() -> None:
    """The keys that Citation File Format 1.2.0 asks for, and their kinds; no invented person."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0" and citation["type"] in ("software", "dataset")
    assert all(isinstance(citation[key], str) and citation[key] for key in ("message", "title", "abstract"))
    assert [list(author) for author in citation["authors"]] == [["name"]]
    known = {
        "cff-version", "message", "title", "authors", "type", "abstract", "keywords", "license", "version",
        "references",
    }  # fmt: skip
    assert citation.keys() <= known
    assert len(set(citation["keywords"])) == len(citation["keywords"])
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert all(set(author) <= {"family-names", "given-names", "name"} for author in reference["authors"])
        [number] = [found["value"] for found in reference["identifiers"]]
        assert re.fullmatch(rf"arXiv:{ARXIV}", number)


def test_version_and_licence_are_the_same_everywhere() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    licence = (ROOT / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0" and "Version 2.0, January 2004" in licence
    for part in (*(f"\n   {i}. " for i in range(1, 10)), "END OF TERMS AND CONDITIONS", "APPENDIX: How to apply"):
        assert part in licence


def blocks(page: Path) -> list[str]:
    return [token.content for token in parsed(page) if token.type == "fence" and token.info in ("python", "text")]


def written(text: str, how: str, table: str, block: str) -> str:
    """A file with a block above a table, or in it."""
    [begin] = list(re.finditer(rf"^{table}\b[^=\n]*= [({{]", text, re.M))
    if how == "above":
        return f"{text[: begin.start()]}{block}\n\n{text[begin.start() :]}"
    return f"{text[: begin.end()]}\n    {block}{text[begin.end() :]}"


@pytest.fixture(scope="module")
def contributed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's code, with every block of CONTRIBUTING.md where its first line says that it goes."""
    root = tmp_path_factory.mktemp("contributed")
    for name in ("pipeline", "stages", "tests"):
        # what is compiled comes along, but for files that another test run writes just now
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.pyc.*"))
    shutil.copy(ROOT / "pyproject.toml", root)
    placed = 0
    for block in blocks(ROOT / "CONTRIBUTING.md"):
        if found := re.match(r"# (\S+\.py), (above|in) (\w+)\n", block):
            file = root / found[1]
            file.write_text(written(file.read_text(), found[2], found[3], block[found.end() :]))
            placed += 1
    assert placed == len(blocks(ROOT / "CONTRIBUTING.md")) - 1
    return root


TOLD = re.search(r'python -m pytest (.*) -k "(.*)"', (ROOT / "CONTRIBUTING.md").read_text())
[USE] = [block for block in blocks(ROOT / "CONTRIBUTING.md") if not block.startswith("#")]


@pytest.fixture(scope="module")
def done(contributed: Path) -> subprocess.CompletedProcess[str]:
    """One process that uses the solver in CONTRIBUTING, prints the design space and runs the tests that it names."""
    assert TOLD
    tests = ["-p", "no:cacheprovider", *TOLD[1].split(), "-k", TOLD[2]]
    more = (
        f"import pytest\nfrom pipeline.commands.docs import page\nprint(page())\nraise SystemExit(pytest.main({tests}))"
    )
    command = [sys.executable, "-c", f"{USE}\n{more}"]
    return subprocess.run(command, cwd=contributed, capture_output=True, text=True)


def test_the_solver_in_contributing_samples_as_its_page_says_and_is_in_the_design_space(
    done: subprocess.CompletedProcess[str],
) -> None:
    promised = re.findall(r"^print\(.*\)  # (.*)$", USE, re.M)
    assert len(promised) == 2 and done.stdout.splitlines()[:2] == promised, done.stderr
    line = "| `kutta3` | Kutta's method of order 3. | `x + h (d_1 + 4 d_2 + d_3) / 6` | t | 3 | 3N - 2 | no |"
    assert line in done.stdout, done.stderr


def test_the_tests_pick_up_the_solver_in_contributing(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 50
