"""The section on training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, write_json, write_text
from pipeline.common.sealed import save_json
from pipeline.report.build import build
from pipeline.report.figures.lines import Line, noise_levels_figure
from pipeline.report.results import LOSS_COLUMNS, read_losses
from pipeline.report.sections import learning
from pipeline.report.study import Report
from pipeline.report.text import number
from tests.report.studies import PROPOSAL, made_up_study

EDM = {"edm": {"model": "edm"}}
MANY: dict[str, dict] = {
    "edm": {},
    "ddpm": {"parametrization": "vp", "noise": "vp_uniform"},
    "flow": {"parametrization": "flow", "noise": "flow_uniform"},
    **{f"w_{name}": {"base": "edm", "weighting": name} for name in ("snr", "min_snr", "soft_min_snr", "edm")},
    **{f"p_{i}": {"base": "edm", "P_mean": -0.2 * i} for i in range(12)},
    "ddpm_snr": {"base": "ddpm", "weighting": "snr"},
    "again": {"base": "edm", "train_seeds": [0]},
}
METHODS = {name: {"model": name, "method": name.upper()} for name in ("edm", "ddpm", "flow")}
MOVED: dict[str, dict] = {"edm": {}, "moved": {"base": "edm", "P_mean": -0.9}, "far": {"base": "edm", "P_mean": 0.5}}


def section(paths: Paths) -> str:
    text = (paths.reports / "report.md").read_text().replace("\\", "")
    return text.split("## Training\n")[1].split("\n## ")[0]


def built(paths: Paths) -> str:
    build(paths)
    return section(paths)


def change_losses(paths: Paths, changed: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    write_text(paths.losses, changed(pd.read_csv(paths.losses)).to_csv(index=False))


def change_models(paths: Paths, **changed: dict[str, Any]) -> None:
    """Change the other results of models."""
    file = paths.metrics("losses", "models")
    found = json.loads(file.read_text())
    for name, own in changed.items():
        found["models"][name] |= own
    write_json(file, found)


def row(text: str, name: str) -> list[str]:
    """The cells of a model's line in the first table that has one."""
    line = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The contents of figures instead of drawing them, by file."""
    kept: dict[str, dict[str, Any]] = {}
    for name in ("noise_levels_figure", "densities_figure"):
        monkeypatch.setattr(learning, name, lambda path, held, *_: kept.update({path.stem: held}))
    return kept


def test_errors_and_gradients_are_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The untrained network has error 1; both models share one line of untrained networks."""
    monkeypatch.chdir(tmp_path)
    figures = drawn(monkeypatch)
    learning.section(Report(made_up_study(tmp_path, EDM, [0, 1]), tmp_path))
    [panel] = figures["loss_by_noise_level"].values()
    trained, initial = panel["edm"]
    assert not trained.dashed and initial.dashed and [len(lines) for lines in panel.values()] == [2, 1]
    sigma, mean, sd = np.array(trained.points).T
    assert sigma == pytest.approx(np.geomspace(0.002, 80, 8))
    assert mean == pytest.approx(0.305) and sd == pytest.approx(0.01 / 2**0.5)
    assert np.array(initial.points)[:, 1:] == pytest.approx(np.array([[1.0, 0.0]] * 8))
    [panel] = figures["gradient_by_noise_level"].values()
    _, mean, sd = np.array(panel["edm_snr"][0].points).T
    assert mean == pytest.approx(sigma**0.1 / np.exp(np.log(sigma).mean()) ** 0.1) and sd == pytest.approx(0, abs=1e-12)


def test_the_table_states_each_models_errors_gradients_and_straightness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients, sigma^0.1, are compared within the central 90% of a model's noise."""
    monkeypatch.chdir(tmp_path)
    text = built(made_up_study(tmp_path, EDM, [0, 1]))
    half = number(0.01 / 2 * stats.t.ppf(0.975, 1))
    spread = number(np.exp(0.1 * 2 * stats.norm.ppf(0.95) * 1.2))
    assert row(text, "edm") == ["`edm`", *[f"0.305 ± {half}"] * 5, f"{spread} ± 0", "0.0200 (sd 0.00300)"]
    assert row(text, "edm_snr")[1] == f"0.325 ± {half}"
    assert "measured on 256 training images" in text and "trajectories of 32 steps" in text
    nearest = [0.0413, 0.188, 0.853, 3.87, 17.6]
    header = next(line for line in text.splitlines() if line.startswith("| model |"))
    assert [float(cell.split("sigma")[1]) for cell in header.split("|")[2:7]] == nearest


def test_one_model_of_one_seed_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = built(made_up_study(tmp_path, EDM, [0], models={"edm": {}}))
    assert row(text, "edm")[1] == "0.300" and row(text, "edm")[-1] == "0.0200" and "nan" not in text


def test_values_that_are_not_finite_are_listed_but_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A noise level is omitted if any seed has no finite value."""
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, EDM, [0, 1])
    values = ["error", "loss", "gradient"]

    def broken(found: pd.DataFrame) -> pd.DataFrame:
        found.loc[(found.model == "edm") & (found.sigma > 10) & (found.train_seed == 1), values] = np.inf
        found.loc[found.model == "edm_snr", values] = np.nan
        return found

    change_losses(paths, broken)
    change_models(paths, edm_snr={"straightness": {"mean": None, "sd": None, "steps": 32}})
    text = built(paths)
    assert row(text, "edm_snr")[1:] == ["not finite"] * 7
    assert "±" in row(text, "edm")[1] and row(text, "edm")[5] == "not finite"
    assert (paths.reports / "figures/loss_by_noise_level.png").exists()
    change_losses(paths, lambda found: found.assign(error=np.nan))
    assert "loss_by_noise_level" not in built(paths)


def test_few_models_share_a_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = dict(list(MANY.items())[: learning.PANEL_LINES])
    report = Report(made_up_study(tmp_path, METHODS, [0], models=few), tmp_path)
    assert learning._panels(report) == {"": list(few)}


def test_many_models_have_panels_by_axis_with_their_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, METHODS, [0, 1], models=MANY)
    found = learning._panels(Report(paths, tmp_path))
    axes = ["noise distribution (1 of 2)", "noise distribution (2 of 2)"]
    assert list(found) == ["methods", "loss weighting", *axes, "repeated"]
    assert found["methods"] == ["edm", "ddpm", "flow"] and found["repeated"] == ["edm", "again"]
    assert found["loss weighting"] == ["edm", "w_snr", "w_min_snr", "w_soft_min_snr", "w_edm", "ddpm", "ddpm_snr"]
    assert [found[axis][0] for axis in axes] == ["edm", "edm"]
    assert [name for axis in axes for name in found[axis][1:]] == [f"p_{i}" for i in range(12)]
    assert max(map(len, found.values())) <= learning.PANEL_LINES
    assert set().union(*found.values()) == set(MANY)


def figure_of(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], None]) -> Figure:
    kept: list[Figure] = []
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.report.figures.lines.save", lambda own, *_: kept.append(own))
        draw()
    return kept[0]


@pytest.mark.parametrize("count", [1, 3])
def test_each_panel_has_its_legend_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    points = [(sigma, 0.5 + sigma / 100, 0.1) for sigma in (0.01, 0.1, 1.0, 10.0)]
    far = [(sigma, 1e6, 0.0) for sigma in (0.01, 10.0)]
    lines = {f"a_model_with_a_name_{i}": [Line(points, i), Line(far, i, True)][: 1 + (i < 2)] for i in range(8)}
    panels = {f"panel {i}": lines for i in range(count)}
    figure = figure_of(monkeypatch, lambda: noise_levels_figure(tmp_path / "x.png", panels, "error", "a note"))
    assert len(figure.axes) == count
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        legend, right = axes.get_legend().get_window_extent(), axes.get_window_extent().x1
        others = [other.get_tightbbox() for other in figure.axes if other.get_window_extent().x0 > right]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)
        assert right <= legend.x0 and all(legend.x1 <= other.x0 for other in others if other)
        assert legend.x1 <= figure.bbox.x1 and legend.y0 >= 0
        assert axes.get_ylim()[1] < 4, "lines of untrained networks do not squeeze the others"
        assert [line.get_linestyle() for line in axes.lines[:3]] == ["-", "--", "-"]


@pytest.mark.parametrize(
    ("own", "base", "said"),
    [
        ((0.002, 0.0003), (0.02, 0.003), "is straighter than that of its base edm: 0.00200 (sd 3.0e-04) against 0.02"),
        ((0.03, 0.0003), (0.02, 0.0003), "is less straight than that of its base edm"),
        (
            (0.019, 0.003),
            (0.02, 0.003),
            "is neither clearly straighter nor clearly less straight than that of its base edm",
        ),
        ((0.019, None), (0.02, 0.003), "is straighter than (one training, so the error is unknown) that of"),
    ],
)
def test_other_pairs_are_compared_with_their_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: tuple, base: tuple, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    models = {"edm": {}, "matched": {"base": "edm", "pairs": "optimal_transport"}}
    paths = made_up_study(tmp_path, EDM, [0, 1, 2], models=models)
    for name, (mean, sd) in (("matched", own), ("edm", base)):
        change_models(paths, **{name: {"straightness": {"mean": mean, "sd": sd, "steps": 32}}})
    [found] = learning._pairs(Report(paths, tmp_path))
    assert found.startswith(f"The flow of matched (pairs optimal_transport) {said}")


def test_the_report_compares_other_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models = {"edm": {}, "matched": {"base": "edm", "pairs": "optimal_transport"}}
    paths = made_up_study(tmp_path, EDM, [0], models=models)
    assert learning._pairs(Report(paths, tmp_path))[0] in built(paths)


def test_distinct_noise_distributions_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unused keys do not make a distribution distinct; densities integrate to nearly 1."""
    monkeypatch.chdir(tmp_path)
    figures = drawn(monkeypatch)
    models = {
        "edm": {},
        "moved": {"P_mean": -0.8},
        "weighted": {"weighting": "snr"},
        "vp": {"parametrization": "vp", "noise": "vp_uniform"},
        "same": {"base": "vp", "P_mean": 0.3},
        "iddpm": {"parametrization": "iddpm", "noise": "iddpm_uniform"},
        "flow": {"parametrization": "flow", "noise": "flow_uniform"},
    }
    learning.section(Report(made_up_study(tmp_path, EDM, [0], models=models), tmp_path))
    lines = figures["noise_distributions"]
    labels = ["lognormal", "lognormal, P_mean -0.8", "vp_uniform", "iddpm_uniform", "flow_uniform"]
    assert list(lines) == labels and [line.place for line in lines.values()] == list(range(5))
    assert [label for label, line in lines.items() if line.dashed] == ["iddpm_uniform"]
    for label, line in lines.items():
        sigma, density, _ = np.array(line.points).T
        assert np.trapezoid(density, np.log(sigma)) == pytest.approx(1, abs=0.03), label


def test_the_table_of_bounds_lists_models_with_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, EDM, [0, 1])
    assert learning._bounds(Report(paths, tmp_path)) == ""
    bound = {"L_0": 0.5, "L_t": 2.25, "L_T": 0.0001, "total": 2.7501, "se": 0.0123, "levels": 1000}
    change_models(paths, edm_snr={"bound": bound})
    text = built(paths).split("### Variational bound")[1]
    assert row(text, "edm_snr")[1:] == ["0.500", "2.25", "1.0e-04", "2.75 (se 0.0123)", "1000"] and "`edm`" not in text


def moved_study(folder: Path, curves: dict[str, dict], scores: list[float], seeds: list[int]) -> Paths:
    """A study with a row close to the proposal: its curve has these scores by seed, the base has 5."""
    paths = made_up_study(folder, {"edm": {"model": "edm"}} | curves, seeds, models=MOVED)
    for name in ("edm", *curves):
        file = paths.curve(name) / "results.json"
        found = json.loads(file.read_text())
        for cell in found["cells"]:
            for metric in [m for m in cell["metrics"] if m["metric"] == "fd_corrected"]:
                metric["value"] = scores[cell["train_seed"]] if name != "edm" else 5.0
        save_json(file, found)
    return paths


CLOSE = {"other": {"model": "moved"}, "far": {"model": "far"}}


def test_the_report_has_the_proposal_and_a_row_close_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = built(moved_study(tmp_path, CLOSE, [4.0, 4.1, 4.2], [0, 1, 2]))
    assert "Proposed lognormal noise distribution: P_mean -0.95, P_std 1.1 (published: P_mean -1.2, P_std 1.2)." in text
    assert "brief trainings of edm (20000 images) learn." in text
    assert "\n`edm_proposed: {base: edm, P_mean: -0.95, P_std: 1.1}`\n" in text
    [sentence] = [line for line in text.splitlines() if "is close to the proposal" in line]
    assert sentence.startswith("moved is close to the proposal: ")
    assert sentence.endswith(": relative to edm, other is better at 4 and 8.")


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([6.0, 6.1, 6.2], "worse at 4 and 8."),
        ([4.0, 5.0, 6.0], "undecided at 4 and 8."),
        ([5.0, 5.0, 5.0], "equal at 4 and 8."),
    ],
)
def test_a_row_close_to_the_proposal_is_worse_or_undecided_or_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    [sentence] = learning._tried(Report(moved_study(tmp_path, CLOSE, scores, [0, 1, 2]), tmp_path))
    assert sentence.startswith("moved is close to the proposal: ") and sentence.endswith(said)


def test_a_proposal_is_compared_only_with_the_same_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparison with another sampler, or without a close row."""
    monkeypatch.chdir(tmp_path)
    scores = [1.0, 2.0]
    paths = moved_study(tmp_path, {"other": {"model": "moved", "rho": 3}, "far": {"model": "far"}}, scores, [0, 1])
    assert learning._tried(Report(paths, tmp_path)) == []
    paths = moved_study(tmp_path, {"other": {"model": "moved"}}, scores, [0, 1])
    write_json(paths.metrics("propose", "noise"), PROPOSAL | {"model": "far", "row": "`far` | x"})
    text = built(paths)
    assert "is close to the proposal" not in text and "\n`far | x`\n" in text


def test_the_report_says_that_nothing_is_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, EDM, [0])
    write_json(paths.metrics("propose", "noise"), PROPOSAL | {"P_mean": None, "P_std": None, "row": None})
    assert (
        "No noise distribution is proposed, because brief trainings of edm (20000 images) learn at no noise level."
        in built(paths)
    )


def test_losses_that_are_missing_or_broken_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, EDM, [0])
    change_losses(paths, lambda found: found[found.model == "edm"])
    with pytest.raises(StudyError, match=r"losses\.csv: no row of model edm_snr; run `dvc repro`$"):
        build(paths)
    write_text(paths.losses, "model,sigma\nedm,3\n")
    with pytest.raises(StudyError, match=r"losses\.csv: broken"):
        build(paths)
    paths.losses.unlink()
    with pytest.raises(StudyError, match=r"losses\.csv: missing"):
        build(paths)


def test_a_model_may_be_called_null(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path))
    write_text(paths.losses, ",".join(LOSS_COLUMNS) + "\nnull,0,trained,0.1,nan,,inf\ngone,0,trained,0.1,1,1,1\n")
    found = read_losses(paths, ["null"])
    assert list(found.model) == ["null"] and found.error.isna().all() and np.isinf(found.gradient).all()


def test_the_table_lists_every_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = learning._by_model(Report(made_up_study(tmp_path, METHODS, [0, 1], models=MANY), tmp_path))
    assert all(f"| `{name}` |" in text for name in MANY)


def with_truth(paths: Paths) -> None:
    """Made-up distances from the truth: 0.1 and 0.2 for trained networks of seed 0, 0.01 more for each next seed."""

    def measured(found: pd.DataFrame) -> pd.DataFrame:
        own = (found.state == "initial") + 0.1 + 0.01 * found.train_seed
        return found.assign(denoising_error=own, map_error=0.1 + own)

    change_losses(paths, measured)
    levels = np.unique(pd.read_csv(paths.losses).sigma)
    file = paths.metrics("losses", "models")
    truth = {"draws": 77, "end": 0.002, "denoiser_map_errors": [0.5 + 0.01 * i for i in range(len(levels))]}
    write_json(file, json.loads(file.read_text()) | {"truth": truth})


def test_distances_to_the_truth_are_drawn_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that are told the class are named and left out."""
    monkeypatch.chdir(tmp_path)
    paths = made_up_study(tmp_path, EDM, [0, 1], models={"edm": {}, "told": {"labels": "classes"}})
    assert "Distance to the truth" not in built(paths)
    with_truth(paths)
    text = built(paths).split("### Distance to the truth by noise level")[1].split("### Noise")[0]
    denoising, mapped = text.split("The map error is")
    half = number(0.01 / 2 * stats.t.ppf(0.975, 1))
    assert row(denoising, "edm") == ["`edm`", *[f"0.105 ± {half}"] * 5]
    assert row(mapped, "edm") == ["`edm`", *[f"0.205 ± {half}"] * 5]
    assert (
        "| the exact denoiser | 0.520 | 0.530 | 0.540 | 0.550 | 0.560 |" in mapped
        and "exact denoiser |" not in denoising
    )
    assert "over 77 draws" in text and "down to sigma = 0.002" in text
    assert "not compared: told." in text and "`told`" not in text
    for name in ("denoising_error", "map_error"):
        assert f"figures/{name}_by_noise_level.png" in text
    figures = drawn(monkeypatch)
    learning.section(Report(paths, tmp_path))
    [panel] = figures["map_error_by_noise_level"].values()
    trained, initial = panel["edm"]
    assert list(panel) == ["edm"] and initial.dashed
    assert np.array(trained.points)[:, 1:] == pytest.approx(np.array([[0.205, 0.01 / 2**0.5]] * 8))
