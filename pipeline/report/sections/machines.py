"""The machines in the section on the measurement setup."""

from pipeline.report.study import Report


def machines(report: Report) -> list[str]:
    """The machines that measured curves and trained models, the most frequent first."""
    found: dict[str, list[str]] = {}
    trained = [summary["machine"] for summary in report.training.values()]
    for kind, used in (("curve", list(report.machines.values())), ("model", trained)):
        for machine in used:
            libraries = ", ".join(f"{key} {value}" for key, value in machine["libraries"].items())
            where = f"{machine['device']}, {machine['system']}, Python {machine['python']}, {libraries}"
            found.setdefault(where, []).append(kind)
    return [
        f"{kinds.count('curve')} curves or image sets and {kinds.count('model')} models on {where}."
        for where, kinds in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
