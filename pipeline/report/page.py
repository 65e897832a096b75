"""Markdown text and tables, and the report's HTML page: one file without any request.

The page shows the Markdown and adds charts in place of the pictures, tables that sort and copy, and links from numbers
to their cells. Without scripts, and in print, it shows the Markdown with its pictures.
"""

import base64
import html
import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import vl_convert
from markdown_it import MarkdownIt
from markdown_it.token import Token

LONG = 60  # characters: longer table cells wrap
NOTHING: dict[str, Any] = {"headline": "", "metrics": [], "curves": [], "models": [], "series": []}
LABELLED = "method"  # the header of first columns that hold labels of curves
# Marks from Unicode's private use area surround a number that links to its cell, because Markdown treats them like
# letters: OPEN, the place of the cell's key among all keys, MIDDLE, the number, CLOSE.
OPEN, MIDDLE, CLOSE = "\ue000", "\ue001", "\ue002"
MARKS = re.compile(f"{OPEN}([0-9]*){MIDDLE}|[{OPEN}{MIDDLE}{CLOSE}]")
LINKED = re.compile(f"{OPEN}([0-9]+){MIDDLE}([^{OPEN}{MIDDLE}{CLOSE}]*){CLOSE}")


class Markdown(str):
    """Text that is Markdown; templates and tables escape all other text."""


def escape(value: object) -> str:
    """Markdown that shows a text literally, on one line."""
    if isinstance(value, Markdown):
        return value
    return re.sub(r"([\\`*\[\]<>|&~$!])", r"\\\1", " ".join(str(value).split()))


def marked(text: str, place: int) -> str:
    """A text that the page links to the cell whose key is at this place."""
    return f"{OPEN}{place}{MIDDLE}{text}{CLOSE}"


def unmarked(text: str) -> str:
    """A text without marks of links to cells."""
    return MARKS.sub("", text)


def bold(value: object) -> Markdown:
    return Markdown(f"**{escape(value)}**")


def code(name: str) -> Markdown:
    """A validated name (letters, digits, underscores) as code."""
    return Markdown(f"`{name}`")


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> Markdown:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join("| " + " | ".join(escape(cell) for cell in line) + " |" for line in lines))


def bullets(sentences: Iterable[object]) -> Markdown:
    """A Markdown list."""
    return Markdown("\n".join(f"- {escape(sentence)}" for sentence in sentences))


def paragraphs(texts: Iterable[object]) -> Markdown:
    return Markdown("\n\n".join(map(escape, texts)))


class Heading(NamedTuple):
    level: int
    text: str
    slug: str


def to_html(
    markdown: str,
    title: str,
    figures: Path,
    behind: Mapping[str, Any] = NOTHING,
    keys: Sequence[str] = (),
) -> str:
    """The page of a Markdown text, which contains no raw HTML, with the pictures and charts in `figures` embedded.

    behind: the data of curves and cells for the page's script, from `cells.behind`. keys: the keys of linked cells,
    "curve/NFE/metric", and "curve/NFE/metric/curve/NFE" for a difference between two curves.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    headings = _headings(tokens)
    _embed_figures(tokens, figures)
    anchors = _name_rows(tokens, behind)
    body = parser.renderer.render(tokens, parser.options, {})
    body = _boxed(body)
    body = unmarked(LINKED.sub(lambda found: _link(found, keys, anchors), body))
    style, script, charts = _asset("page.css"), _asset("page.js"), library()
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)} {_hash(charts)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#report">Skip to the report</a>\n'
        f"{_contents(headings)}"
        f'<main id="report">\n{body}</main>\n'
        f'<script type="application/json" id="behind">{data(behind)}</script>\n'
        f'<script type="text/plain" id="charts">{charts}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def data(value: Any) -> str:
    """JSON in which no text can end the script element around it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that makes no request."""
    # Both texts would end or comment out the script element; in the bundle they occur only in strings.
    return (
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        .replace("</script", "<\\/script")
        .replace("<!--", "\\x3c!--")
    )


@cache
def _asset(name: str) -> str:
    return files("pipeline.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression of a script or a style in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"


def _headings(tokens: list[Token]) -> list[Heading]:
    """The headings; gives each a unique id."""
    found: list[Heading] = []
    for token, inside in pairwise(tokens):
        if token.type == "heading_open":
            text = unmarked(_text(inside))
            plain = re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:60] or "section"
            # Ids of rows begin with "curve-", ids of headings with "s-".
            slug, taken = f"s-{plain}", [other.slug for other in found]
            slug = next(s for i in range(len(taken) + 1) if (s := slug + (f"-{i + 1}" if i else "")) not in taken)
            token.attrSet("id", slug)
            found.append(Heading(int(token.tag[1:]), text, slug))
    return found


def _contents(headings: list[Heading]) -> str:
    """The table of contents: sections and their subsections."""
    lines: list[str] = []
    parts: list[str] = []

    def close() -> None:
        if parts:
            lines.append(f"<ul>{''.join(parts)}</ul>")
        parts.clear()
        if lines:
            lines.append("</li>")

    for heading in headings:
        link = f'<a href="#{html.escape(heading.slug)}">{html.escape(heading.text)}</a>'
        if heading.level == 2:
            close()
            lines.append(f"<li>{link}")
        elif heading.level > 2:
            parts.append(f"<li>{link}</li>")
    close()
    if not lines:
        return ""
    inner = "".join(lines)
    return f'<nav aria-label="Contents"><details open><summary>Contents</summary><ul>{inner}</ul></details></nav>\n'


def _text(token: Token) -> str:
    """The plain text of a token."""
    kinds = ("text", "code_inline", "softbreak")
    return "".join(c.content if c.type != "softbreak" else " " for c in token.children or [] if c.type in kinds)


def _embed_figures(tokens: list[Token], figures: Path) -> None:
    """Turn every paragraph that is a picture into a figure with the embedded picture and its chart, if it has one."""
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        for child in token.children or []:
            if child.type == "link_open" and (address := str(child.attrs["href"])).startswith("figures/"):
                child.attrs["href"] = f"#figure-{Path(address).stem}"
        images = [child for child in token.children or [] if child.type == "image"]
        for image in images:
            path = figures / Path(str(image.attrs["src"])).name
            content = path.read_bytes()
            image.attrs["src"] = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            image.attrs["decoding"] = "async"
            if content[12:16] == b"IHDR":
                width, height = struct.unpack(">II", content[16:24])
                image.attrs |= {"width": width, "height": height}
            if len(token.children or []) == 1 and before.type == "paragraph_open":
                alt = _text(image)
                before.tag = after.tag = "figure"
                before.attrSet("id", f"figure-{path.stem}")
                token.children = [image, _raw(_caption(unmarked(alt), path))]


def _raw(content: str) -> Token:
    return Token("html_inline", "", 0, content=content)


def _caption(alt: str, path: Path) -> str:
    """The caption of a picture: its description, its SVG file, and its chart for the page's script."""
    vectors, chart = path.with_suffix(".svg"), path.with_suffix(".json")
    link = f' <a href="figures/{html.escape(vectors.name)}" download>SVG</a>' if vectors.exists() else ""
    found = f"<figcaption>{html.escape(alt)}{link}</figcaption>"
    if chart.exists():
        drawn = json.loads(chart.read_text(encoding="utf-8")) | {"description": alt}
        found += f'<script type="application/json" class="chart">{data(drawn)}</script>'
    return found


def _name_rows(tokens: list[Token], behind: Mapping[str, Any]) -> dict[str, str]:
    """Mark every table row with the curves that it describes, and long cells. Returns the anchor of each curve, which
    is its row in the table of settings."""
    curves, by_label, by_model = [name for name, _ in behind["curves"]], dict(behind["series"]), _by_model(behind)
    sampled = [name for name, own in behind["curves"] if own["model"]]  # the others are image sets
    anchors: dict[str, str] = {}
    header: list[str] = []
    rows: dict[str, Token] = {}
    last = rows
    row, cells = Token("", "", 0), -1
    for before, token in pairwise(tokens):
        if before.type == "thead_open":
            header, rows = [], {}
        elif before.type == "th_open":
            header.append(unmarked(_text(token)))
            before.attrSet("scope", "col")
        elif before.type == "tr_open":
            row, cells = before, -1
        elif before.type == "td_open":
            cells += 1
            text, title = unmarked(_text(token)), header[cells] if cells < len(header) else ""
            if len(text) > LONG:
                before.attrSet("class", "long")
            settings = title == "row" and "base" in header
            if settings:
                rows[text] = row
            own = [text] if title in ("curve", "step") and text in curves else []
            if cells == 0 and not own:
                own = by_model.get(text, []) if title == "model" else []
                own = by_label.get(text, []) if title == LABELLED or title.startswith("difference from ") else own
            if own:
                row.attrSet("data-curves", " ".join(own))
        elif before.type == "table_close" and list(rows) == sampled:
            # A model may have the name of a curve; the table of curves comes after that of models.
            anchors = {name: f"curve-{name}" for name in rows}
            last = rows
    for name in anchors:
        last[name].attrSet("id", anchors[name])
        last[name].attrSet("data-curves", name)
    return anchors


def _by_model(behind: Mapping[str, Any]) -> dict[str, list[str]]:
    """The curves of each model."""
    found: dict[str, list[str]] = {}
    for name, own in behind["curves"]:
        if own["model"]:
            found.setdefault(own["model"], []).append(name)
    return found


def _boxed(body: str) -> str:
    """Every table in a box that scrolls by mouse and keyboard."""
    box = '<div class="wide" tabindex="0" role="region" aria-label="Table"><table>'
    return body.replace("<table>", box).replace("</table>", "</table></div>")


def _link(found: re.Match[str], keys: Sequence[str], anchors: Mapping[str, str]) -> str:
    """A number as a link to its cell; without scripts, to the row of its curve."""
    place, text = int(found[1]), found[2]
    key = keys[place] if place < len(keys) else ""
    anchor = anchors.get(key.split("/")[0])
    return f'<a class="cell" href="#{anchor}" data-cell="{html.escape(key)}">{text}</a>' if anchor else text
