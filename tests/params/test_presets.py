"""Presets: what one lays over a study, what it needs of the machine, and the folder that is written for another one."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.commands.new import model_choices
from pipeline.common.errors import StudyError
from pipeline.diffusion.denoiser import new_denoiser, save_denoiser
from pipeline.diffusion.networks.registry import build, cost
from pipeline.params import needs
from pipeline.params.null_axes import remarks
from pipeline.params.presets import MARK, choose, preset_text
from pipeline.params.resolve import resolve
from pipeline.params.resolved import Resolved
from pipeline.params.study import parse_study, read_study, unmet
from pipeline.training.row import Model
from tests.imports import ROOT
from tests.scripts import run_module

HERE = Path("studies/small/params.yaml")
TEXT = """# yaml-language-server: $schema=../../params.schema.json
# A study of two scales.

title: "Two scales"
study: {name: small, root: ../.., params: studies/small/params.yaml}  # its names

preset: large  # the one that holds

presets:
  tiny:
    data: {limit: 300}
    features: {epochs: 1}
    defaults: {models: {images: 512}, curves: {samples: 40, nfe: [4]}}
  large:
    needs: {gpu_gib: 20}
    defaults: {models: {images: 9000}}

data: {source: digits, labels: false}  # where images are
features: {extractor: classifier, width: 16}
defaults:
  models: {batch: 64, images: 700}
models:
  edm: {}  # the baseline
curves:
  edm: {model: edm}
sets: {}
"""


def error(text: str) -> str:
    with pytest.raises(StudyError) as caught:
        resolve(parse_study(text, HERE))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_preset_overrides_the_studys_sections_key_by_key() -> None:
    large, tiny = (parse_study(TEXT.replace("preset: large", f"preset: {p}"), HERE) for p in ("large", "tiny"))
    assert (large.preset, large.needs.gpu_gib, large.data.limit) == ("large", 20, None)
    assert large.defaults == {"models": {"batch": 64, "images": 9000}}
    assert (tiny.preset, tiny.needs.gpu_gib, tiny.data.limit, tiny.data.labels) == ("tiny", 0, 300, False)
    assert (tiny.features.width, tiny.features.epochs) == (16, 1)
    assert tiny.defaults == {"models": {"batch": 64, "images": 512}, "curves": {"samples": 40, "nfe": [4]}}
    assert resolve(tiny).models["edm"].row.images == 512


def test_a_preset_overrides_keys_of_rows_and_their_heirs_inherit_them() -> None:
    text = TEXT.replace("  edm: {}  #", "  edm: {batch: 32, channels: 24}\n  deep: {base: edm, blocks: 2}  #")
    text = text.replace("    needs: {gpu_gib: 20}", "    models: {edm: {batch: 16}}\n    curves: {edm: {rho: 3}}")
    large, tiny = (resolve(parse_study(text.replace("preset: large", f"preset: {p}"), HERE)) for p in ("large", "tiny"))
    assert [(entry.row.batch, entry.row.channels) for entry in large.models.values()] == [(16, 24), (16, 24)]
    assert [(entry.row.batch, entry.row.channels) for entry in tiny.models.values()] == [(32, 24), (32, 24)]
    assert large.models["deep"].differences == {"blocks": 2}
    assert (large.curves["edm"].row.rho, tiny.curves["edm"].row.rho) == (3, 7)


def test_without_an_active_preset_the_study_stays_as_it_is() -> None:
    bare = yaml.safe_load(TEXT)
    del bare["preset"], bare["presets"]
    alone = parse_study(yaml.safe_dump(bare), HERE)
    unset = parse_study(TEXT.replace("preset: large  # the one that holds", ""), HERE)
    assert resolve(unset) == resolve(alone) and unset.needs.gpu_gib == 0


MISTAKES = {  # what is replaced, by what, the line
    "an unknown preset": ("preset: large", "preset: larg", "preset: no preset 'larg'; did you mean 'large'? "),
    "no presets": (
        TEXT[TEXT.index("\npresets:") : TEXT.index("\ndata:")],
        "",
        "preset: 'large', but the study has no presets",
    ),
    "another section": ("    needs: {gpu_gib: 20}", "    sets: {}", "presets.large.sets: unknown key; "),
    "a row": (
        "    needs: {gpu_gib: 20}",
        "    models: {edn: {}}",
        "presets.large.models.edn: no such row; did you mean",
    ),
    "a row's key": (
        "    needs: {gpu_gib: 20}",
        "    models: {edm: {bach: 2}}",
        "presets.large.models.edm.bach: unknown key; did you mean 'batch'?",
    ),
    "a row's key in a preset that is not active": (
        "    features: {epochs: 1}",
        "    curves: {edm: {rhoo: 2}}",
        "presets.tiny.curves.edm.rhoo: unknown key; did you mean 'rho'?",
    ),
    "a row's value": ("    needs: {gpu_gib: 20}", "    curves: {edm: {rho: none}}", "curves.edm.rho: takes a number"),
    "a curve's model": (
        "    needs: {gpu_gib: 20}",
        "    curves: {edm: {model: edm}}",
        "presets.large.curves.edm.model: unknown key; ",
    ),
    "a data key": ("{limit: 300}", "{limits: 300}", "presets.tiny.data.limits: unknown key; did you mean 'limit'?"),
    "a data value": ("{limit: 300}", "{limit: 1}", "presets.tiny.data.limit: takes "),
    "a feature key": ("{epochs: 1}", "{epoch: 1}", "presets.tiny.features.epoch: unknown key; did you mean 'epochs'?"),
    "features": ("{epochs: 1}", "{extractor: module}", "presets.tiny.features: weights: module needs the path"),
    "a default": ("{images: 512}", "{image: 512}", "presets.tiny.defaults.models.image: unknown key; "),
    "a default section": ("models: {images: 512}", "model: {}", "presets.tiny.defaults.model: unknown key; did you "),
    "a default's value": ("{images: 9000}", "{images: many}", "models.edm.images: takes a whole number"),
    "a need": ("gpu_gib: 20", "gpu: 20", "presets.large.needs.gpu: unknown key; did you mean 'gpu_gib'?"),
    "a need's value": ("gpu_gib: 20", "gpu_gib: -1", "presets.large.needs.gpu_gib: takes a number greater than or "),
    "a preset's name": ("  tiny:", "  the-tiny:", "presets.the-tiny: "),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_that_says_where(case: str) -> None:
    old, new, line = MISTAKES[case]
    assert old in TEXT
    assert error(TEXT.replace(old, new)).startswith(line)


def gpus(monkeypatch: pytest.MonkeyPatch, *gib: float) -> None:
    sizes = [type("Properties", (), {"total_memory": int(each * 2**30)}) for each in gib]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(sizes))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: sizes[i])


NEEDED = "needs.gpu_gib: preset large needs a GPU of 20 GiB, but "


@pytest.mark.parametrize(
    ("gib", "line"),
    [
        ((), NEEDED + "PyTorch finds no GPU here; PRESET=tiny runs here"),
        ((80, 11.5), NEEDED + "the smallest GPU here has 11.5 GiB; PRESET=tiny runs here"),
        ((80, 20), None),
    ],
)
def test_a_study_reports_what_the_machine_lacks(
    gib: tuple[float, ...], line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, *gib)
    monkeypatch.delenv("NFE_DEVICE", raising=False)
    assert unmet(parse_study(TEXT, HERE)) == line
    with monkeypatch.context() as patched:
        patched.setenv("NFE_DEVICE", "cpu")
        assert unmet(parse_study(TEXT, HERE)) == NEEDED + "PyTorch finds no GPU here; PRESET=tiny runs here"
    assert unmet(parse_study(TEXT.replace("preset: large", "preset: tiny"), HERE)) is None


def test_presets_inherit_the_needs_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch)
    text = TEXT.replace("\ndata:", "\nneeds: {gpu_gib: 12}\ndata:").replace("    needs: {gpu_gib: 20}\n", "")
    lines = [unmet(parse_study(text.replace("\npreset: large", f"\n{p}"), HERE)) for p in ("preset: tiny", "")]
    told = ", but PyTorch finds no GPU here; run it on a machine with such a GPU"
    assert lines == [f"needs.gpu_gib: {who} needs a GPU of 12 GiB{told}" for who in ("preset tiny", "this study")]
    assert needs.Needs() == parse_study(TEXT.replace("preset: large", "preset: tiny"), HERE).needs


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study of two scales in a repository of its own, as the working folder."""
    (folder := tmp_path / "studies/small").mkdir(parents=True)
    (folder / "params.yaml").write_text(TEXT)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(ROOT / "dvc.yaml", folder)
    (tmp_path / "x.zip").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_another_preset_gets_its_own_folder(repository: Path) -> None:
    assert choose("small", "tiny") == "small_tiny"
    folder = Path("studies/small_tiny")
    assert not (folder / "dvc.yaml").is_symlink()
    assert (folder / "dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()
    lines, own = (folder / "params.yaml").read_text().splitlines(), TEXT.splitlines()
    assert lines.pop(1).startswith(MARK + "small PRESET=tiny`")
    assert [(old, new) for old, new in zip(own, lines, strict=True) if old != new] == [
        ("study: {name: small, root: ../.., params: studies/small/params.yaml}  # its names",
         "study: {name: small_tiny, root: ../.., params: studies/small_tiny/params.yaml} # its names"),
        ("preset: large  # the one that holds", "preset: tiny   # the one that holds"),
    ]  # fmt: skip
    study = read_study(folder / "params.yaml")
    assert (study.preset, study.study.name, study.data.source, study.data.limit) == (
        "tiny",
        "small_tiny",
        "digits",
        300,
    )


def test_the_active_preset_stays_in_its_folder(repository: Path) -> None:
    before = files(repository)
    assert choose("small", "large") == choose("small", "", "digits") == "small"
    assert files(repository) == before


@pytest.mark.parametrize("path", ["my images.zip", 'a "b", c: {d}.zip', "é/#.zip"])
def test_other_data_get_their_own_folder(repository: Path, path: str) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).touch()
    assert choose("small", "", path) == "small_large"
    study = read_study(Path("studies/small_large/params.yaml"))
    assert (study.data.source, study.data.labels, study.preset) == (path, False, "large")
    assert "} # where images are\n" in Path("studies/small_large/params.yaml").read_text()
    choose("small", "tiny", path)
    study = read_study(Path("studies/small_tiny/params.yaml"))
    assert (study.data.source, study.data.limit) == (path, 300)


def test_writing_again_takes_over_edits_and_keeps_other_files(repository: Path) -> None:
    choose("small", "tiny")
    folder = Path("studies/small_tiny")
    (folder / "dvc.lock").write_text("kept")
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("rho", "row") + "# lost\n")
    HERE.write_text(TEXT.replace("\nsets:", "\n  rho_3: {model: edm, rho: 3}\nsets:"))
    choose("small", "tiny")
    assert list(read_study(folder / "params.yaml").curves) == ["edm", "rho_3"]
    assert (folder / "dvc.lock").read_text() == "kept" and "lost" not in (folder / "params.yaml").read_text()


def test_a_preset_can_be_added_and_blocks_can_be_edited(repository: Path) -> None:
    text = TEXT.replace("preset: large  # the one that holds\n", "").replace(
        "study: {name: small, root: ../.., params: studies/small/params.yaml}",
        "study:\n  name: small\n  root: ../..\n  params: 'studies/small/params.yaml'",
    )
    for own in (text, text.replace("\npresets:", "\npreset:  # the one that holds\npresets:")):
        study = parse_study(preset_text(own, "small", "tiny"), HERE)
        assert (study.preset, study.study.params) == ("tiny", "studies/small_tiny/params.yaml")


def somebodys(folder: str, name: str) -> None:
    (path := Path("studies") / folder).mkdir()
    (path / "params.yaml").write_text(f"study: {{name: {name}}}\n")


REFUSED: dict[str, tuple[tuple[str, str, str], str]] = {
    "a name": (("smal", "tiny", ""), "NAME: 'smal': no such study; did you mean 'small'?"),
    "no name": (("", "tiny", ""), "NAME: '': no such study; valid: bare, "),
    "a way out": (("../studies/small", "tiny", ""), "NAME: '../studies/small': no such study"),
    "a preset": (("small", "tinny", ""), "PRESET: no preset 'tinny'; did you mean 'tiny'? valid: large, tiny"),
    "no presets": (("bare", "tiny", ""), "PRESET: studies/bare/params.yaml has no presets; leave PRESET and DATA out"),
    "no data": (("small", "tiny", "digit"), "DATA: 'digit' is no folder, no .zip file, no .tar.gz of CIFAR-10 and no"),
    "no home": (("small", "tiny", "~no_such_user/x.zip"), "'~no_such_user/x.zip' names no home folder"),
    "a set source": (("fixed", "tiny", "x.zip"), "presets.tiny.data.source: overrides DATA=x.zip"),
    "somebody's folder": (("small", "tiny", ""), "PRESET: studies/small_tiny exists and was not written by PRESET"),
    "somebody's name": (("small", "large", "x.zip"), "PRESET: studies/mine/params.yaml already has the name small_la"),
    "a bad row": (("broken", "tiny", ""), "curves.edm.rho: takes a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_preset_is_one_line_and_writes_nothing(repository: Path, case: str) -> None:
    bare = yaml.safe_load(TEXT) | {"study": {"name": "bare"}, "preset": None, "presets": {}}
    others = {
        "bare": yaml.safe_dump(bare),
        "fixed": TEXT.replace("{limit: 300}", "{source: digits}"),
        "broken": TEXT.replace("edm: {model: edm}", "edm: {model: edm, rho: high}"),
    }
    for name, text in others.items():
        shutil.copytree("studies/small", f"studies/{name}")
        Path(f"studies/{name}/params.yaml").write_text(text)
    somebodys("small_tiny", "mine_too")
    somebodys("mine", "Small_Large")
    before = files(repository)
    given, line = REFUSED[case]
    with pytest.raises(StudyError) as caught:
        choose(*given)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
    assert files(repository) == before


def test_the_study_is_refused_without_its_gpu_and_at_a_preset_that_does_not_exist(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code, printed = run_module(*arguments), capsys.readouterr()
        return code, printed.out, printed.err

    gpus(monkeypatch)
    monkeypatch.delenv("NFE_DEVICE", raising=False)
    monkeypatch.setattr("pipeline.common.fingerprint.stage_fingerprints", dict)  # reading all code takes a second
    line = f"error: {NEEDED}PyTorch finds no GPU here; PRESET=tiny runs here\n"
    assert choose("small", "tiny") == "small_tiny"
    code, out, error = run("pipeline", "repro", "--study=small", "--preset=none")
    assert (code, out) == (1, "") and error.startswith("error: PRESET: no preset 'none'")
    assert run("pipeline", "repro", "--study=small") == (1, "", line)
    assert run("stages.resolve", "--params", "studies/small_tiny/params.yaml")[0] == 0
    code, _, error = run("stages.resolve", "--params", str(HERE))
    assert (code, error) == (1, line)


CIFAR10 = ROOT / "studies/cifar10/params.yaml"
EVERY = ("smoke", "short", "paper")


@cache
def of_cifar10(preset: str) -> Resolved:
    """The resolved rows of the CIFAR-10 study at a preset."""
    text = CIFAR10.read_text().replace("\npreset: short\n", f"\npreset: {preset}\n")
    study = parse_study(text, CIFAR10)
    assert study.preset == preset
    return resolve(study)


def test_the_presets_of_cifar10_are_these() -> None:
    study = read_study(CIFAR10)
    assert (tuple(study.presets), study.preset) == ((*EVERY, "released"), "short")
    assert len(study.models) >= 5 and len(study.curves) >= 20
    assert [p.needs.gpu_gib > 0 for p in study.presets.values() if p.needs] == [False, True, True, True]


@pytest.mark.parametrize("preset", EVERY)
def test_every_row_of_every_preset_of_cifar10_is_valid(preset: str) -> None:
    rows = of_cifar10(preset)
    assert [*rows.warnings, *remarks(rows)] == []
    assert rows.preset == preset
    for entry in rows.models.values():
        with torch.device("meta"):
            build(entry.row.spec(0.5, (3, 32, 32), (5000,) * 10))  # raises where the images don't go with it


def test_released_networks_have_rows_of_their_own(repository: Path) -> None:
    """A small network of ours stands for the two released ones."""
    small = Model(channels=8, multipliers=(1,), blocks=1)
    for kind, classes in (("uncond", ()), ("cond", (5000,) * 10)):
        spec = small.model_copy(update={"labels": "classes" if classes else "none"}).spec(0.5, (3, 32, 32), classes)
        save_denoiser(new_denoiser(spec, 0), Path(f"networks/edm-cifar10-32x32-{kind}-vp.safetensors"))
    Path("studies/cifar10").mkdir()
    Path("studies/cifar10/params.yaml").write_text(CIFAR10.read_text().replace("-vp.pkl", "-vp.safetensors"))
    assert choose("cifar10", "released") == "cifar10_released"
    rows = resolve(read_study(Path("studies/cifar10_released/params.yaml")))
    assert [*rows.warnings, *remarks(rows)] == []
    assert list(rows.models) == ["edm_released", "classes_released"]
    assert {row.curve for row in rows.published} == rows.curves.keys() - {"optimised_ipndm", "dpmpp_2m"}
    assert rows.curves["gs"].row.nfe == tuple(range(3, 11)) and rows.data.heldout == 0


@pytest.mark.parametrize(("preset", "millions"), [("short", 9.9), ("paper", 55.7)])
def test_networks_of_cifar10_have_the_documented_size(preset: str, millions: float) -> None:
    row = of_cifar10(preset).models["edm"].row
    assert cost(row.spec(0.5, (3, 32, 32))).parameters / 1e6 == pytest.approx(millions, abs=0.05)


def test_paper_is_the_published_scale_of_make_new() -> None:
    chosen = model_choices((3, 32, 32), 50_000, "published") | {"train_seeds": [0]}
    row = of_cifar10("paper").models["edm_augmented"].row.model_dump(mode="json")
    assert {key: row[key] for key in chosen} == chosen


def test_only_paper_trains_on_all_images_of_cifar10() -> None:
    assert {preset: of_cifar10(preset).data.heldout for preset in EVERY} == {"smoke": 0.2, "short": 0.2, "paper": 0}


def test_smoke_is_small() -> None:
    rows = of_cifar10("smoke")
    assert rows.data.limit == 2000 and rows.features.extractor == "classifier"
    images = sum(entry.row.images for entry in rows.models.values())
    curves = [entry.row for entry in rows.curves.values()]
    evaluations = sum(sum(row.nfe) * row.samples * len(row.seeds) for row in curves)
    row = rows.models["edm"].row
    assert (3 * images + evaluations) * cost(row.spec(0.5, (3, 32, 32))).flops < 4e12  # three minutes of a core or so


WITH_ROWS = TEXT.replace(
    "data: {source",
    '  own:\n    data: {limit: 400}\n    instead:\n      models: {flow: {parametrization: flow, noise: flow_uniform}}\n'
    "      curves: {euler: {model: flow, solver: euler}}\n\ndata: {source",
    1,
)  # fmt: skip


def test_a_preset_may_have_rows_instead_of_the_studys(repository: Path) -> None:
    Path("studies/small/params.yaml").write_text(WITH_ROWS)
    assert choose("small", "own") == "small_own"
    study = read_study(Path("studies/small_own/params.yaml"))
    assert (study.preset, *study.presets, study.data.limit) == ("own", "own", 400)
    assert (list(study.models), list(study.curves)) == (["flow"], ["euler"])
    assert resolve(study).curves["euler"].row.model == "flow"
    assert list(read_study(Path("studies/small/params.yaml")).models) == ["edm"]


def test_rows_of_a_preset_need_a_file_of_their_own() -> None:
    found = error(WITH_ROWS.replace("preset: large", "preset: own", 1))
    assert "preset: own" in found and "PRESET=own" in found


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "flow: {parametrization: flow,",
            "flow: {parametrisation: flow,",
            "models.flow.parametrisation: unknown key; ",
        ),
        ("flow, solver: euler", "flow, sovler: euler", "curves.euler.sovler: unknown key; did you mean 'solver'"),
        ("curves: {euler: {", "published: [{curv: x}]\n      curves: {euler: {", "published.0.curv"),
        ("models: {flow: {parametrization: flow, noise: flow_uniform}}", "models: {}", "models: "),
    ],
)
def test_rows_of_a_preset_are_checked_whichever_is_chosen(old: str, new: str, line: str) -> None:
    assert old in WITH_ROWS
    assert error(WITH_ROWS.replace(old, new)).startswith(f"presets.own.instead.{line}")


def test_rows_of_a_preset_may_import_a_network() -> None:
    text = WITH_ROWS.replace("{parametrization: flow, noise: flow_uniform}", "{import: network.pkl}")
    assert parse_study(text, HERE).presets["own"].instead["models"] == {"flow": {"import": "network.pkl"}}


def test_wrong_rows_of_a_preset_write_nothing(repository: Path) -> None:
    Path("studies/small/params.yaml").write_text(WITH_ROWS.replace("model: flow, solver", "model: edm, solver"))
    with pytest.raises(StudyError, match=r"curves\.euler\.model"):
        choose("small", "own")
    assert not Path("studies/small_own").exists()
