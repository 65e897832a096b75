"""A study of somebody's own images: what is chosen for them, what is written, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.commands.cost import Estimate
from pipeline.commands.new import (
    FEWEST_IMAGES,
    ONE_CORE,
    Images,
    _said,
    curve_choices,
    feature_choices,
    halvings,
    model_choices,
    new_study,
    study_flops,
    study_text,
)
from pipeline.common.errors import StudyError
from pipeline.data.sources import glance
from pipeline.diffusion.networks.registry import cost
from pipeline.params.resolve import resolve
from pipeline.params.study import read_study
from pipeline.training.row import Model
from tests.imports import ROOT
from tests.scripts import run_module

BY_HAND = Path("studies/template/params.yaml")  # for those who do not use `make new`
EDM = {"channels": 128, "blocks": 4, "attention": [16], "learning_rate_decay": "none"}
CIFAR = EDM | {"multipliers": [2, 2, 2], "batch": 512, "learning_rate": 1e-3, "dropout": 0.13, "augment": 0.12}
FFHQ = EDM | {"multipliers": [1, 2, 2, 2], "batch": 256, "learning_rate": 2e-4, "dropout": 0.05, "augment": 0.15}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's studies, to write into."""
    for study in (BY_HAND.parent, Path("studies/points")):
        (tmp_path / study).mkdir(parents=True)
        (tmp_path / study / "params.yaml").write_bytes((ROOT / study / "params.yaml").read_bytes())
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(folder: Path, count: int = 96, size: tuple[int, int] = (8, 6), mode: str = "RGB", of: int = 1) -> Path:
    """A folder of images (width, height), in as many class folders as asked for; 1: none."""
    values = np.random.default_rng(0)
    for i in range(count):
        place = folder if of == 1 else folder / f"class {i % of}"
        place.mkdir(parents=True, exist_ok=True)
        shape = size[::-1] if mode == "L" else (*size[::-1], 3)
        Image.fromarray(values.integers(0, 256, shape, np.uint8), mode).save(place / f"{i}.png")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_template_is_what_is_chosen_for_32_pixels_in_colour() -> None:
    study = read_study(ROOT / BY_HAND)
    assert study.defaults == {"models": model_choices((3, 32, 32), 5000, "cpu"), "curves": curve_choices("cpu")}
    assert study.study.model_dump() == {"name": "template", "root": "../..", "params": str(BY_HAND)}
    assert not resolve(study).warnings
    written = study_text(study.title, "template", study.data.model_dump(exclude_unset=True), Images(5000, (3, 32, 32)))
    assert (ROOT / BY_HAND).read_text().split("\n\n", 1)[1] == written.split("\n\n", 1)[1]


def test_the_template_compares_the_methods_and_ablates() -> None:
    entries = resolve(read_study(ROOT / BY_HAND)).curves.values()
    methods = {entry.row.method for entry in entries if entry.row.method}
    assert methods == {"EDM (Heun)", "DDIM", "rectified flow (Euler)", "rectified flow (Heun)"}
    assert {"solver", "rho", "loss weighting"} <= {entry.axis for entry in entries if not entry.row.method}


@pytest.mark.parametrize(
    ("height", "width", "times"),
    [(8, 8, 2), (16, 16, 2), (24, 24, 2), (28, 28, 2), (32, 32, 2), (64, 64, 3), (48, 64, 3), (25, 25, 0), (30, 30, 1)],
)
def test_images_are_halved_until_they_are_small(height: int, width: int, times: int) -> None:
    assert halvings(height, width) == times


@pytest.mark.parametrize("scale", ["cpu", "published"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 25, 31), (3, 48, 64)])
def test_the_network_that_is_chosen_can_have_the_images(shape: tuple[int, ...], scale: str) -> None:
    row = Model(**model_choices(shape, 1000, scale))
    assert cost(row.spec(0.5, shape)).flops > 0


@pytest.mark.parametrize(("size", "published"), [(32, CIFAR), (64, FFHQ)])
def test_published_settings_are_those_of_edms_table_7(size: int, published: dict[str, Any]) -> None:
    chosen = model_choices((3, size, size), 50_000, "published")
    assert {key: chosen[key] for key in published} == published
    assert (chosen["images"], chosen["ema_halflife_images"], chosen["warmup_images"]) == (
        200_000_000,
        500_000,
        10_000_000,
    )
    if size == 32:  # as docs/networks.md has it
        assert cost(Model(**chosen).spec(0.5, (3, 32, 32))).parameters == 55_733_891


@pytest.mark.parametrize(("mode", "of"), [("RGB", 1), ("L", 3)])
def test_a_new_study_resolves_and_says_what_was_found(workspace: Path, mode: str, of: int) -> None:
    draw(workspace / "images", 240, (16, 16), mode, of)
    said = new_study("pets", "images")
    assert said.startswith(
        f"240 {'colour' if mode == 'RGB' else 'grey'} images of 16 x 16, {'3' if of == 3 else 'no'} classes\n"
    )
    assert "make study NAME=pets runs it\n" in said and "reports/pets/proposed.yaml" in said
    assert {path.name for path in Path("studies/pets").iterdir()} == {"params.yaml", "dvc.yaml"}
    assert not Path("studies/pets/dvc.yaml").is_symlink()
    assert Path("studies/pets/dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    study = read_study(Path("studies/pets/params.yaml"))
    assert study.study.model_dump() == {"name": "pets", "root": "../..", "params": "studies/pets/params.yaml"}
    assert (study.data.source, study.data.labels) == ("images", True)
    assert study.defaults["models"]["multipliers"] == [1, 2, 4] and "labels" not in study.defaults["models"]
    assert list(resolve(study).models) == list(resolve(read_study(BY_HAND)).models)


@pytest.mark.parametrize(
    ("count", "of", "share", "said"),
    [
        (600, 3, 0.2, "120 of them are held out from all trainings"),
        (240, 1, 0, "none is held out, because 0.2 of 240 images is 48 and leaves 192 to train on, but both need at"),
    ],
)
def test_a_fifth_is_held_out_if_the_images_suffice(
    workspace: Path, count: int, of: int, share: float, said: str
) -> None:
    draw(workspace / "images", count, (8, 8), "L", of)
    assert new_study("pets", "images").splitlines()[1].startswith(said)
    text = Path("studies/pets/params.yaml").read_text()
    assert f"A small study of {count} grey images" in text and f"heldout: {share}" in text
    assert read_study(Path("studies/pets/params.yaml")).data.heldout == share


def test_photo_patches_have_a_split_of_their_own(workspace: Path) -> None:
    said = new_study("photos", "photo_patches")
    data = read_study(Path("studies/photos/params.yaml")).data
    assert (data.source, data.heldout) == ("photo_patches", 0.2)
    assert f"{glance(data)['heldout']} of them are held out" in said


def test_the_written_study_explains_itself(workspace: Path) -> None:
    draw(workspace / "images")
    new_study("pets", "images")
    text = Path("studies/pets/params.yaml").read_text()
    assert text.startswith(
        "# yaml-language-server: $schema=../../params.schema.json\n# A small study of 96 colour images of 6 x 8"
    )
    assert text.count("#") == BY_HAND.read_text().count("#")
    assert "template" not in text and "reports/pets/proposed.yaml" in text


def test_networks_learn_classes_on_request(workspace: Path) -> None:
    draw(workspace / "images", 120, of=2)
    new_study("pets", "images", labels="classes")
    study = read_study(Path("studies/pets/params.yaml"))
    assert study.defaults["models"]["labels"] == "classes"
    with pytest.raises(StudyError, match=r"^LABELS: unknown value 'yes'; valid: classes, none$"):
        new_study("others", "images", labels="yes")


@pytest.mark.parametrize(
    ("of", "said"),
    [(12, "12 classes of fewer than 20 images on average, ignored"), (1, "one class (all), ignored")],
)
def test_class_folders_that_are_no_classes_are_ignored(workspace: Path, of: int, said: str) -> None:
    draw(workspace / "images/all" if of == 1 else workspace / "images", 96, (8, 8), of=of)
    assert said in new_study("pets", "images")
    study = read_study(Path("studies/pets/params.yaml"))
    assert not study.data.labels and study.features.extractor == "classifier"
    with pytest.raises(StudyError, match=r"^LABELS: images: .*ignored; leave LABELS out$"):
        new_study("others", "images", labels="classes")


def test_the_classes_of_edms_tools_are_found(workspace: Path) -> None:
    folder = draw(workspace / "images", 96, (8, 8))
    labels = [[path.name, i % 2] for i, path in enumerate(sorted(folder.iterdir()))]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert "2 classes" in new_study("pets", "images")


def test_images_that_cannot_be_turned_are_measured_with_inception(workspace: Path) -> None:
    draw(workspace / "images")
    assert "without classes and not square" in new_study("pets", "images")
    assert read_study(Path("studies/pets/params.yaml")).features.extractor == "inception"


@pytest.mark.parametrize(("count", "epochs"), [(96, 30), (5000, 6), (500_000, 1)])
def test_the_classifier_sees_about_as_many_images_whatever_their_number(count: int, epochs: int) -> None:
    found = feature_choices(Images(count, (3, 8, 8)), "cpu")
    assert found.get("epochs", 30) == epochs


HOSTILE = (
    *('it\'s "here": {a}, #b, $(touch pwned), ${study.name}, é', "photos 😀", "back\\slash\t" + "and spaces " * 20),
    *("null", "no", "true", "1e3", "2020-01-01"),
)


@pytest.mark.parametrize("path", HOSTILE)
def test_a_hostile_path_is_a_path(workspace: Path, path: str) -> None:
    draw(workspace / path)
    new_study("pets", path)
    assert read_study(Path("studies/pets/params.yaml")).data.source == path


@pytest.mark.parametrize("name", ["no", "null", "True", "123", "1e3", "_"])
def test_a_name_that_yaml_takes_for_another_value_is_a_name(workspace: Path, name: str) -> None:
    draw(workspace / "images")
    new_study(name, "images")
    assert read_study(Path(f"studies/{name}/params.yaml")).study.name == name


REFUSED = {
    "no name": ("", "images", "NAME: '': a name has 1 to 60 letters, digits and underscores; write NAME=pets"),
    "elsewhere": ("../x", "images", "NAME: '../x': a name has 1 to 60"),
    "a word of a shell": ("$(touch pwned)", "images", "NAME: '$(touch pwned)': a name has 1 to 60"),
    "too long": ("a" * 61, "images", f"NAME: '{'a' * 61}': a name has 1 to 60"),
    "the template": ("template", "images", "NAME: template: studies/template has this name; choose another"),
    "another study": ("points", "images", "NAME: points: studies/points has this name; choose another"),
    "the root's": ("digits", "images", "NAME: digits: params.yaml has this name; choose another"),
    "but for case": ("Points", "images", "NAME: Points: studies/points has this name; choose another"),
    "a study that is not valid now": (
        "Mine",
        "images",
        "NAME: Mine: studies/a/params.yaml has this name; choose another",
    ),
    "an old report": ("old", "images", "NAME: old: reports/old exists already; choose another name"),
    "no images named": ("pets", "", "IMAGES: missing; write IMAGES=path/to/folder, or a .zip"),
    "nowhere": (
        "pets",
        "nowhere",
        "IMAGES: 'nowhere' is no folder, no .zip file, no .tar.gz of CIFAR-10 and no built-in data set",
    ),
    "no images": ("pets", "studies", "studies: no images in it; at least 2 are needed"),
    "too few": ("pets", "few", f"IMAGES: few has 79 images; distances need at least {FEWEST_IMAGES}"),
    "sizes that differ": ("pets", "sizes", "sizes: 0.png is 8 x 6, but z.png is 5 x 5; resize all images to one size"),
    "a broken file": ("pets", "broken", "broken/z.png: cannot be read as an image; mend or remove it"),
    "points": ("pets", "two_moons", "IMAGES: two_moons are points; copy studies/points"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line_and_nothing_is_written(workspace: Path, case: str) -> None:
    name, source, line = REFUSED[case]
    if source in ("images", "few", "sizes", "broken"):
        draw(workspace / source, 79 if source == "few" else 96)
    if source == "sizes":
        Image.new("RGB", (5, 5)).save(workspace / "sizes/z.png")
    if source == "broken":
        (workspace / "broken/z.png").write_bytes(b"no image")
    (workspace / "reports/old").mkdir(parents=True)
    for folder, text in (("a", "study: {name: mine, rot: x}"), ("b", "study: ["), (".c", "study: {name: pets}")):
        (workspace / "studies" / folder).mkdir()
        (workspace / "studies" / folder / "params.yaml").write_text(text)
    before = files(workspace)
    with pytest.raises(StudyError) as caught:
        new_study(name, source)
    assert str(caught.value).startswith(line) and len(str(caught.value).splitlines()) == 1
    assert files(workspace) == before and not list(workspace.glob("studies/.*.partial"))


def test_the_cost_is_that_of_the_rows(workspace: Path) -> None:
    """One model, one seed, one curve: 3 passes for each image seen, one evaluation for each NFE and sample."""
    study = read_study(BY_HAND)
    text = {
        "study": {"name": "small"},
        "defaults": {"models": {"channels": 8, "images": 1000, "train_seeds": [0]}},
        "models": {"edm": {}},
        "curves": {"edm": {"model": "edm", "nfe": [8], "samples": 50, "sample_seeds": [0, 1]}},
        "sets": {},
    }
    Path("small.yaml").write_text(yaml.safe_dump(text))
    study = read_study(Path("small.yaml"))
    one = cost(Model(channels=8).spec(0.5, (3, 16, 16))).flops
    images = Images(100, (3, 16, 16))
    found = study_flops(study, images)
    seen = 896  # images: 7 whole batches
    assert found["training"] == 3 * seen * one
    features = Estimate(resolve(study), images.summary, {}, ONE_CORE)._features.flops
    assert found["sampling"] == 50 * 2 * (7 * one + features)  # Heun's method pays 4 steps, which cost 7, from 8


@pytest.mark.parametrize(("size", "said"), [(24, "141 TFLOP"), (32, "251 TFLOP"), (64, "1,270 TFLOP")])
def test_the_cost_that_the_page_tells_is_what_is_said(workspace: Path, size: int, said: str) -> None:
    images = Images(5000, (3, size, size))
    text = study_text("t", "t", {"source": "x"}, images)
    Path("params.yaml").write_text(text)
    line = _said("t", ["", ""], study_flops(read_study(Path("params.yaml")), images)).splitlines()[3]
    told = re.fullmatch(rf"cost: about {said} \(.*\): ([\d.,]+) h of a core at 20 GFLOP/s", line)
    page = (ROOT / "docs/your-images.md").read_text()
    assert told and re.search(rf"\b{said.partition(' ')[0]}( TFLOP)? \({told[1]} hours[^)]*\) at {size} x {size}", page)


def test_the_command_is_one_line_on_a_mistake(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_module("pipeline", "new", "--study", "pets", "--images", "nowhere") == 1
    printed = capsys.readouterr()
    assert printed.out == "" and re.fullmatch(r"error: IMAGES: 'nowhere' is no folder.*\n", printed.err)
