"""The section on latents and cascades, and the costs in FLOPs, in made-up studies."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import StudyError
from pipeline.common.files import Paths, read_json, write_json
from pipeline.evaluation.curve import Curve
from pipeline.report.build import build
from pipeline.report.cells import behind
from pipeline.report.flops import bill, mixes, reference, weighted
from pipeline.report.page import unmarked
from pipeline.report.sections import latents, methods
from pipeline.report.study import STAGED, Report
from pipeline.report.text import plain
from tests.report.studies import CURVES as PLAIN
from tests.report.studies import HOSTILE, ParsedPage, fail, made_up_study, markdown, row, score, write_cells

FLOPS = {"edm": 1_000_000, "wide": 2_000_000, "latent": 400_000, "low": 250_000, "up": 1_500_000}
MODELS: dict[str, dict[str, Any]] = {name: {} for name in FLOPS}
LIVES: dict[str, dict[str, Any]] = {
    "latent": {"space": "kl"},
    "low": {"resolution": 4},
    "up": {"upsampler": {"from": 4, "augmentation": "noise", "strength": 0.5}},
}
CURVES: dict[str, dict[str, Any]] = {
    "edm": {"model": "edm", "method": "pixels", "nfe": [3, 7, 15]},
    "latent": {"model": "latent", "method": "latent", "nfe": [3, 7, 15]},
    "cascade": {"model": "up", "method": "cascade", "nfe": [4, 8]},
    "strong": {"model": "up", "nfe": [4, 8]},
    "cut": {"model": "up", "nfe": [4, 8]},
    "small": {"model": "low", "solver": "euler", "nfe": [3]},
    "wide": {"model": "wide", "nfe": [3, 7]},
}
STRENGTHS = {"cascade": (0.0, False), "strong": (0.2, False), "cut": (0.2, True)}
MEANS: dict[str, dict[int, float]] = {
    "edm": {3: 20, 7: 8, 15: 4},
    "latent": {3: 12, 7: 8.1, 15: 7},
    "cascade": {4: 10, 8: 3},
    "strong": {4: 11, 8: 2},
    "cut": {4: 12, 8: 3},
    "small": {3: 50},
    "wide": {3: 40, 7: 30},
}
STAGES = {4: [("low", 3), ("up", 1)], 8: [("low", 4), ("up", 4)]}  # by steps, which equal the NFE here
AUTOENCODER = {
    "kind": "kl",
    "factor": 2,
    "channels": 1,
    "parameters": 1234,
    "encoder_flops": 300_000,
    "decoder_flops": 800_000,
    "values": 0.25,
    "loss": 0.1,
    "images": 64,
    "facts": [],
}
ORACLE = {
    "autoencoder": 2.0,
    "points": [
        {"steps": n, "nfe": n, "sampler": "euler", "together": 2 + lost, "pixels": lost}
        for n, lost in ((2, 5.0), (4, 2.5), (8, 1.0), (16, 0.1))
    ],
}
RECONSTRUCTED = {
    "count": 64,
    "mse": 0.0125,
    "train": [{"metric": "fd_corrected", "value": 1.5, "se": 0.1}, {"metric": "kd", "value": 0.25, "se": None}],
    "heldout": None,
    "oracle": None,
}
HEADING = "## Latents and cascades"


def study(
    folder: Path,
    changed: dict[str, dict[int, float]] | None = None,
    without: tuple[str, ...] = (),
    autoencoder: str = "kl",
    spread: float = 0.02,
    **reconstructed: Any,
) -> Paths:
    """A study whose curves have these means over three trainings, spread by a share of them.

    The rows say where models live only after `resolve`, so that these tests depend on the keys alone.
    """
    curves = {name: keys for name, keys in CURVES.items() if name not in without}
    paths = made_up_study(folder, curves, [0, 1, 2], models=MODELS)
    file = folder / paths.row("", "report")
    rows = read_json(file)
    for name, keys in LIVES.items():
        rows["models"][name]["row"] |= keys | ({"space": autoencoder} if "space" in keys else {})
    for name, (strength, truncated) in STRENGTHS.items():
        if name in curves:
            earlier = {key: value for key, value in rows["curves"]["small"]["row"].items() if key != "seeds"}
            own = {"after": "small", "strength": strength, "truncated": truncated, "earlier": earlier}
            rows["curves"][name]["row"] |= own
    write_json(file, rows)
    for name, flops in FLOPS.items():
        file = folder / paths.metrics("train", name)
        write_json(file, read_json(file) | {"flops": flops})
    write_json(folder / paths.metrics("autoencode", "autoencoders"), {autoencoder: AUTOENCODER})
    own = {autoencoder: RECONSTRUCTED | reconstructed}
    write_json(folder / paths.metrics("reconstruct", "autoencoders"), own)
    for place, name in enumerate(curves):
        means = MEANS[name] | (changed or {}).get(name, {})
        write_cells(folder / paths.curve(name), [[0, 0], [1, 1], [2, 2]], [(nfe, nfe) for nfe in means], {})
        signs = [(1, -1, 0), (0, 1, -1), (-1, 0, 1)][place % 3]
        score(paths, {name: {n: [mean * (1 + spread * sign) for sign in signs] for n, mean in means.items()}})
    return paths


@pytest.fixture(autouse=True)
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and cascades whose stages take STAGES."""
    monkeypatch.chdir(tmp_path)

    def evaluations(row: Curve, steps: int) -> list[tuple[str, int]]:
        return STAGES[steps] if row.after else [(row.model, row.evaluations(steps))]

    monkeypatch.setattr(Curve, "stage_evaluations", evaluations)


def part(paths: Paths, folder: Path) -> dict[str, Any]:
    found = latents.section(Report(paths, folder))
    assert found is not None
    return {key: unmarked(text) if isinstance(text, str) else text for key, text in found.items()}


def lines(text: str) -> list[list[str]]:
    """The cells of a table, without its header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_costs_include_all_stages_and_the_decoder(tmp_path: Path) -> None:
    report = Report(study(tmp_path), tmp_path)
    assert reference(report) == "edm" and mixes(report)
    assert weighted(report, "edm", 7) == 7
    assert weighted(report, "wide", 7) == 14
    assert bill(report, "latent", 7).total == 7 * 400_000 + 800_000
    assert weighted(report, "latent", 7) == pytest.approx(3.6)
    assert report.curves["cascade"].row.stages == ["low", "up"]
    assert weighted(report, "cascade", 4) == pytest.approx(3 * 0.25 + 1 * 1.5)
    assert weighted(report, "cascade", 8) == pytest.approx(4 * 0.25 + 4 * 1.5)


def test_stages_must_add_up_to_the_counted_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(study(tmp_path), tmp_path)
    monkeypatch.setitem(STAGES, 8, [("low", 4), ("up", 3)])
    with pytest.raises(StudyError, match=r"^curves\.cascade: its stages take 7 evaluations, but 8 were counted$"):
        bill(report, "cascade", 8)


def test_models_of_small_images_are_no_unit(tmp_path: Path) -> None:
    report = Report(study(tmp_path), tmp_path)
    models = {name: report.models[name] for name in ("low", "up", "latent", "wide")}
    report.rows = report.rows.model_copy(update={"models": models})
    assert reference(report) == "wide"


@pytest.mark.parametrize(("flops", "mixed"), [(1_000_000, False), (1_004_000, False), (1_200_000, True)])
def test_networks_of_equal_cost_do_not_mix(tmp_path: Path, flops: int, mixed: bool) -> None:
    curves = {name: {"model": name, "method": name} for name in ("edm", "wide")}
    report = Report(made_up_study(tmp_path, curves, [0, 1, 2], models={"edm": {}, "wide": {}}), tmp_path)
    report.training["edm"]["flops"], report.training["wide"]["flops"] = 1_000_000, flops
    assert mixes(report) is mixed
    assert bool(methods.flops_figure(report)) is mixed


def test_a_study_without_such_models_is_unchanged(tmp_path: Path) -> None:
    paths = made_up_study(tmp_path, PLAIN, [0, 1, 2])
    assert latents.section(Report(paths, tmp_path)) is None
    build(paths)
    text = markdown(paths)
    for new in (HEADING, "FLOP-weighted", "rFD", "methods_flops"):
        assert new not in text
    settings, shown = text.split("## All settings")[1].split("## Agree")[0], str(behind(Report(paths, tmp_path)))
    origins = (paths.reports / "provenance.json").read_text()
    for key in STAGED:
        assert f" {key} " not in settings and f"{key}: " not in shown and f'"{key}"' not in origins
    assert row(text, "`edm`", "## Cost")[6] == "46.9"  # 7 evaluations of 6.7 MFLOPs


def test_systems_list_spaces_costs_and_the_share_of_the_decoder(tmp_path: Path) -> None:
    found = {line[0]: line[1:] for line in lines(part(study(tmp_path), tmp_path)["systems"])}
    assert found["`edm`"] == ["pixels 8 x 8", "1.00", "", "", "3.00", "", "7.00", "", "15.0"]
    assert found["`latent`"][:4] == ["latents 1 x 4 x 4 of kl", "0.400", "0.800", "1.50 ± 0.209"]  # 2.093 x 0.1
    assert found["`latent`"][4] == "2.00 (decoder 40.0%)"
    same = found["`cascade`, `strong` and `cut`"]
    assert same[:2] == ["pixels 4 x 4, then pixels 8 x 8", "0.250 + 1.50"] and same[5] == "2.25" and same[7] == "7.00"


def test_autoencoders_have_their_losses(tmp_path: Path) -> None:
    unseen = [{"metric": "fd_corrected", "value": 2.5, "se": 0.2}]
    [line] = lines(part(study(tmp_path, heldout=unseen), tmp_path)["autoencoders"])
    assert line == [
        *("`kl`", "kl", "2", "1", "25.0%", "1,234", "0.0125"),
        *("1.50 ± 0.209", "2.50 ± 0.419", "0.300", "0.800"),
    ]


def test_families_offer_their_most_costly_points_within_a_budget(tmp_path: Path) -> None:
    report = Report(study(tmp_path), tmp_path)
    offers = latents._offers(report)
    assert list(offers) == [3, 7, 15]
    assert offers[3]["pixels"] == [("edm", 3)] and offers[3]["latents"] == [("latent", 3)]
    assert offers[3]["cascades"] == [("cascade", 4), ("strong", 4), ("cut", 4)]
    assert offers[7]["latents"] == [("latent", 15)]  # costs 6.8
    assert offers[7]["pixels"] == [("edm", 7), ("wide", 3)]
    assert offers[7]["cascades"][0] == ("strong", 8)  # costs exactly 7
    assert offers[15]["pixels"] == [("edm", 15), ("wide", 7)]


def test_a_failed_point_is_not_replaced_by_a_cheaper_one(tmp_path: Path) -> None:
    paths = study(tmp_path)
    fail(paths, "latent", nfes=(15,), seeds=(1,))
    offers = latents._offers(Report(paths, tmp_path))
    assert offers[3]["latents"] == [("latent", 3)] and offers[7]["latents"] == []
    assert "15" not in part(paths, tmp_path)["findings"][1]


def test_verdicts_at_equal_flops_agree_with_the_table(tmp_path: Path) -> None:
    paths = study(tmp_path)
    report = Report(paths, tmp_path)
    found = part(paths, tmp_path)
    verdicts = latents._verdicts(report, latents._offers(report))
    assert verdicts["latents", "pixels", 3].word == "better"
    assert verdicts["latents", "pixels", 3].effect.mean == pytest.approx(12 / 20, rel=0.01)
    assert verdicts["latents", "pixels", 15].word == "worse"
    assert verdicts["latents", "cascades", 15] is verdicts["latents", "cascades", 7]  # equal points count once
    assert verdicts["cascades", "pixels", 15].effect.mean == pytest.approx(2 / 4, rel=0.01)
    table = {line[0]: line[1:] for line in lines(found["scores"])}
    assert table["3"][2].startswith("**10.0") and "(`cascade`, NFE 4, costs 2.25)" in table["3"][2]
    assert "**" not in table["3"][0] + table["3"][1]
    assert table["15"][1].startswith("7.00")
    assert found["findings"][0].endswith("by budget (evaluations of edm): cascades alone at 3, 7 and 15.")
    assert found["findings"][1].startswith("Latents relative to pixels at equal FLOPs, by budget: better at 3")
    assert "; at 3 ×0.600 (" in found["findings"][1] and ", at 15 ×1.75 (" in found["findings"][1]


def test_the_budgets_are_the_costs_of_the_first_method(tmp_path: Path) -> None:
    paths = study(tmp_path)
    file = paths.metrics("train", "wide")
    write_json(file, read_json(file) | {"flops": 500_000})
    report = Report(paths, tmp_path)
    report.methods = ["wide"]
    assert list(latents._offers(report)) == [1.5, 3.5]
    assert [latents._stated(budget) for budget in (1.5, 3.5, 3.0000000000000004)] == ["1.50", "3.50", "3"]


def test_noise_leaves_families_undecided(tmp_path: Path) -> None:
    found = part(study(tmp_path, spread=0.6), tmp_path)
    assert "undecided at 3, 7 and 15; at 3 ×" in found["findings"][1]
    assert "cascades, latents or pixels at " in found["findings"][0]


def test_strengths_are_compared_with_strength_0(tmp_path: Path) -> None:
    paths = study(tmp_path)
    report = Report(paths, tmp_path)
    [cascade] = latents._cascades(report)
    assert cascade == {(False, 0.0): "cascade", (False, 0.2): "strong", (True, 0.2): "cut"}
    found = part(paths, tmp_path)
    table = {line[0]: line[1:] for line in lines(found["strengths"])}
    assert table["`cascade`"][:2] == ["up after small", "strength 0"] and table["`cascade`"][3] == ""
    assert table["`strong`"][5].startswith("×0.667 (") and table["`strong`"][5].endswith("better")
    [bought] = [text for text in found["findings"] if text.startswith("Conditioning augmentation")]
    assert bought.startswith(
        "Conditioning augmentation of up after small at a budget of 8, relative to strength 0: strength 0.2 ×0.667 ("
    )
    assert "strength 0.2, truncated ×1.00 (" in bought


def test_other_stages_are_no_other_strength(tmp_path: Path) -> None:
    paths = study(tmp_path)
    rows = read_json(paths.row("", "report"))
    rows["curves"]["strong"]["row"]["share"] = 0.25
    write_json(paths.row("", "report"), rows)
    [cascade] = latents._cascades(Report(paths, tmp_path))
    assert list(cascade.values()) == ["cascade", "cut"]


def test_nested_rows_are_plain_text(tmp_path: Path) -> None:
    row = Report(study(tmp_path), tmp_path).models["up"].row
    assert plain(row.upsampler) == "from 4, augmentation noise, strength 0.5"
    assert plain({"from": 4, "blur": True}) == "from 4, blur true"


def test_the_losses_of_an_exact_latent_model(tmp_path: Path) -> None:
    found = part(study(tmp_path, oracle=ORACLE), tmp_path)
    assert lines(found["oracles"][0]["table"])[1] == ["euler", "4", "2.00", "2.50", "4.50", "2.50"]
    assert found["findings"][-1] == (
        "On Gaussian data with exact denoisers, autoencoder kl loses a squared distance of 2.00; euler loses less than "
        "that from NFE 8 on; in pixels, it loses less than both together from NFE 2 on."
    )


def test_the_report_says_what_limits_it(tmp_path: Path) -> None:
    text = " ".join(part(study(tmp_path), tmp_path)["caveats"])
    for caveat in ("products of matrices", "trained once", "share, the part of the earlier ones (0.5)"):
        assert caveat in text


def test_the_whole_report(tmp_path: Path, rough_figures: None) -> None:
    paths = study(tmp_path, oracle=ORACLE)
    build(paths)
    text = markdown(paths)
    for figure in ("methods_flops", "strength"):
        assert f"(figures/{figure}.png)" in text
        chart = read_json(paths.reports / "figures" / f"{figure}.json")
        assert chart
    chart = read_json(paths.reports / "figures" / "methods_flops.json")
    points = {(p["series"], p["note"]): p["x"] for p in chart["data"]["values"] if "note" in p}
    assert points["latent", "latent (7)"] == 3.6 and points["cascade", "cascade (8)"] == 7
    assert chart["encoding"]["tooltip"][1]["title"] == "FLOP-weighted NFE (evaluations of edm)"
    assert row(text, "rFD of kl", "## Methods")[2:] == ["1.50 ± 0.209"] * 5
    assert row(text, "rFD of kl", "### KD (classifier) by budget")[2:] == ["0.250"] * 5
    assert row(text, "rFD of kl", "All metrics of each method")[:4] == ["rFD of kl", "", "1.50 ± 0.209", ""]
    assert row(text, "`latent`", "## Cost")[6] == "6.80"
    assert "Families that may have the lowest" in text.split("## Methods")[0]


@pytest.mark.parametrize(
    "lost", [("latent",), ("cascade", "strong", "cut"), ("edm",), ("edm", "wide", "latent", "cascade", "strong", "cut")]
)
def test_failures_break_nothing(tmp_path: Path, lost: tuple[str, ...]) -> None:
    paths = study(tmp_path)
    for name in lost:
        fail(paths, name, nfes=tuple(MEANS[name]))
    build(paths)
    assert HEADING in markdown(paths)


def test_failed_reconstructions_and_missing_families_break_nothing(tmp_path: Path) -> None:
    nothing = {"mse": None, "train": [{"metric": "fd_corrected", "value": None, "se": None}]}
    build(study(tmp_path, without=("cascade", "strong", "cut"), **nothing))
    text = markdown(Paths("made_up"))
    assert "Conditioning augmentation" not in text.split(HEADING)[1].split("\n## ")[0]
    assert row(text, "rFD of kl", "## Methods")[2:] == ["", "", ""]


def test_the_page_escapes_what_rows_say(tmp_path: Path) -> None:
    paths = study(tmp_path)
    file = paths.metrics("autoencode", "autoencoders")
    write_json(file, {"kl": AUTOENCODER | {"kind": HOSTILE}})
    build(paths)
    page = ParsedPage((paths.reports / "report.html").read_text())
    assert HOSTILE in page.text and "http://evil.example" not in page.addresses
