"""Markdown text and tables, and the report's HTML page: one file that asks for nothing else."""

import base64
import html
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

LONG = 60  # letters: longer cells of a table are broken into lines
STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #ffffff; --line: #d5d9de; --soft: #f3f5f7; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6e9; --back: #16181b; --line: #3a3f45; --soft: #22262a; } }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem; color: var(--text); background: var(--back);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.long { white-space: normal; min-width: 16rem; }
th { background: var(--soft); }
code { background: var(--soft); padding: .1em .3em; border-radius: 4px; font-size: .9em; }
@media print { body { max-width: none; } .wide { overflow: visible; } table { font-size: .6rem; } }
"""


class Markdown(str):
    """Text that is Markdown already; everything else is escaped when it enters a template or a table."""


def escape(value: object) -> str:
    """Text as Markdown that shows it letter by letter, on one line."""
    if isinstance(value, Markdown):
        return value
    return re.sub(r"([\\`*\[\]<>|&~$!])", r"\\\1", " ".join(str(value).split()))


def bold(value: object) -> Markdown:
    return Markdown(f"**{escape(value)}**")


def code(name: str) -> Markdown:
    """A validated name (letters, digits, underscores) in code type."""
    return Markdown(f"`{name}`")


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> Markdown:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join("| " + " | ".join(escape(cell) for cell in line) + " |" for line in lines))


def to_html(markdown: str, title: str, figures: Path) -> str:
    """The page: Markdown without any raw HTML, its pictures, found in `figures`, put inside."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for before, token in pairwise(tokens):
        if before.type == "td_open" and len(token.content) > LONG:
            before.attrSet("class", "long")
    for token in tokens:
        for child in token.children or []:
            if child.type == "image":
                content = base64.b64encode((figures / Path(str(child.attrs["src"])).name).read_bytes()).decode()
                child.attrs |= {"src": f"data:image/png;base64,{content}", "id": _figure_id(str(child.attrs["src"]))}
            elif child.type == "link_open" and str(child.attrs["href"]).startswith("figures/"):
                child.attrs["href"] = "#" + _figure_id(str(child.attrs["href"]))
    body = parser.renderer.render(tokens, parser.options, {})
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _figure_id(address: str) -> str:
    """What a figure is called inside the page."""
    return f"figure-{Path(address).stem}"
