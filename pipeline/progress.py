"""Progress on the terminal; silent where the output is none."""

from tqdm import tqdm


def bar(title: str, total: int | None, unit: str) -> tqdm:
    """A progress bar on stderr. Call .update(n) from any thread."""
    return tqdm(desc=title, total=total, unit=f" {unit}", unit_scale=True, disable=None, leave=False)
