"""The tables of every setting."""

from typing import Any

from pipeline.common.rows import Row
from pipeline.report.page import bold, code, table
from pipeline.report.text import plain


def design_table(rows: dict[str, Any], schema: type[Row], first: list[str], unset: dict[str, str]) -> dict[str, str]:
    """The design choices in which any row differs from another, the values that differ from a row's base in bold.

    Below it, as a sentence, the choices that are the same everywhere. unset: what a None stands for, by key
    ("" for all other keys).
    """
    every = first + [key for key, field in schema.model_fields.items() if field.title]
    shown = {
        name: {key: unset.get(key, unset[""]) if row[key] is None else row[key] for key in every}
        for name, row in rows.items()
    }
    first_row = next(iter(shown.values()))
    keys = [key for key in every if any(row[key] != first_row[key] for row in shown.values())]
    lines = []
    for name, row in rows.items():
        base, own = shown[row["base"]], shown[name]
        texts = [plain(own[key]) if own[key] == base[key] else bold(plain(own[key])) for key in keys]
        lines.append([code(name), code(row["base"]), *texts])
    common = "; ".join(f"{key} {plain(first_row[key])}" for key in every if key not in keys)
    return {"table": table(["row", "base", *keys], lines), "common": f"All others: {common}." if common else ""}
