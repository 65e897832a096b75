"""The documents: links lead somewhere, formulas are the code's, and what CONTRIBUTING tells to write works."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from pipeline.commands.axes import AXES, COEFFICIENTS, coefficients
from pipeline.commands.docs import SECTIONS, page
from pipeline.diffusion.parametrization import PARAMETRIZATIONS
from pipeline.params.schema import properties_of
from pipeline.sampling.row import Sampler
from tests.imports import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("reports/*/report.md"))]
ARXIV = r"\d\d(0[1-9]|1[0-2])\.\d{4,5}(v\d+)?"
PLAIN = {
    "explicit",
    "independent",
    "linear",
    "none",
    "state",
    "identity",
    "mask",
    "downsample",
    "clip",
}  # too plain for a source
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
    """A key that takes names is an axis, but for settings of objectives, of the loop and of the measurement."""
    settings = {"labels", "equal", "precision", "compile", "memory_format", "repetitions"}
    settings |= {"budget", "grid", "teacher_step", "prior", "covariance"}
    for section, row in SECTIONS.items():
        inherited = Sampler.model_fields if section in ("likelihood", "posteriors") else ()
        properties = [(key, part) for key, part in properties_of(row).items() if key not in inherited]
        named = {key for key, part in properties if any("enum" in p for p in part.get("anyOf", [part]))}
        assert named - settings == {axis.key for axis in AXES if axis.section == section and axis.key}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_a_parametrization_has_its_four_coefficients(name: str) -> None:
    assert tuple(coefficients(name)) == COEFFICIENTS


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
