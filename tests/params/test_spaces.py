"""Latents in a study file: what is refused in one line, what `resolve` writes, and what equal FLOPs include."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import StudyError
from pipeline.common.scalars import dump
from pipeline.common.text import LONGEST_LINE
from pipeline.diffusion.autoencoder import decoder_size
from pipeline.diffusion.networks.registry import LARGEST_GAP, cost
from pipeline.params.resolve import resolve_with_data
from pipeline.params.resolved import ReportRows
from pipeline.params.study import parse_study
from pipeline.training.autoencoder_row import AutoencoderRow
from pipeline.training.row import EQUAL_EVALUATIONS, Model
from tests.diffusion.released import write_released
from tests.params.minimal import FLOW, MINIMAL, refusal, resolved

SHAPE = (3, 16, 16)
HALF = {"factor": 2, "channels": 4}
DISTILLED = {"base": "edm", "objective": "consistency_distillation"}


def latents(changed: dict[str, Any] | None = None, /, **row: Any) -> dict[str, Any]:
    """Sections with an autoencoder `half`, with some keys replaced, and a model `x`."""
    return {"autoencoders": {"half": HALF | (changed or {})}, "models": {"edm": {}, "x": row}}


def alone(**autoencoder: Any) -> dict[str, Any]:
    """Sections with an autoencoder `half` of these keys alone."""
    return {"autoencoders": {"half": autoencoder}}


def learning(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    return {"autoencoders": {"half": HALF, "other": HALF}, "models": {"edm": teacher, "x": student}}


BAD: dict[str, tuple[dict[str, Any], str]] = {  # sections, and how their line begins
    "a typo": (latents(space="hafl"), "models.x.space: no autoencoder 'hafl'; did you mean 'half'? valid: half"),
    "no autoencoders": (
        {"models": {"edm": {"space": "half"}}},
        "models.edm.space: no autoencoder 'half'; the study has no autoencoders; add this one",
    ),
    "filled in": (latents(space="half", autoencoder=HALF), "models.x.autoencoder: `resolve` fills this key in"),
    "content": (
        alone(kind="released", folder="x", content="y"),
        "autoencoders.half.content: `resolve` fills this key in",
    ),
    "augment": (
        latents(space="half", augment=0.1),
        "models.x: augment: changes pixels, and this row is trained on lat",
    ),
    "flip": (latents(space="half", flip=0.5), "models.x: flip: changes pixels, and this row is trained on latents"),
    "a resolution": (
        latents(space="half", resolution=8),
        "models.x: resolution: an autoencoder takes images of full size; leave out this or space",
    ),
    "an upsampler": (latents(space="half", upsampler={"from": 8}), "models.x: upsampler: averages pixels, and this"),
    "a variance": (
        latents(space="half", learned_variance="hybrid", parametrization="ddpm", noise="ddpm_uniform"),
        "models.x: learned_variance: its decoder is for pixels of 256 levels; use none, or no space",
    ),
    "a key of vq": (
        latents({"codebook": 3}),
        "autoencoders.half: codebook: kind kl does not use it; codebook is for vq",
    ),
    "a key of networks": (
        alone(kind="pca", width=8),
        "autoencoders.half: width: kind pca does not use it; width is for kl, vq",
    ),
    "a factor of released": (alone(kind="released", folder="x", factor=2), "autoencoders.half: factor: kind released"),
    "no folder": (
        alone(kind="released"),
        "autoencoders.half: folder: kind released needs the folder of an Autoencoder",
    ),
    "an unknown kind": (alone(kind="vae"), "autoencoders.half.kind: unknown value 'vae'; valid: kl, pca, released, vq"),
    "an unknown key": (alone(fatcor=2), "autoencoders.half.fatcor: unknown key; did you mean 'factor'?"),
    "no power of two": (latents({"factor": 3}), "autoencoders.half: factor: 3 is no power of two from 2 to 64"),
    "no row": ({"autoencoders": {"half": None}}, "autoencoders.half: takes a mapping, not null"),
    "no rows": ({"autoencoders": None}, "autoencoders: takes a mapping, not null"),
    "a likelihood": (
        latents(space="half") | {"likelihood": {"models": ["x"]}},
        "likelihood.models: model x has space, and this is measured in the space of the data",
    ),
    "a stage of a cascade": (
        {"autoencoders": {"half": HALF}, "models": {"edm": {}, "l": {"space": "half"}, "x": {"upsampler": {"from": 8}}}}
        | {"curves": {"edm": {"model": "edm"}, "l": {"model": "l"}, "x": {"model": "x", "after": "l"}}},
        "curves.x.after: curve l makes latents of half; name a curve of pixels",
    ),
    "a teacher in pixels": (
        learning({}, DISTILLED | {"space": "half"}),
        "models.x.space: the training starts from the weights of base edm, which has null; use the same here",
    ),
    "a teacher in other latents": (
        learning({"space": "other"}, DISTILLED | {"space": "half"}),
        "models.x.space: the training starts from the weights of base edm, which has other; use the same here",
    ),
    "a teacher of larger images": (
        learning({}, DISTILLED | {"resolution": 8}),
        "models.x.resolution: the training starts from the weights of base edm, which has null",
    ),
    "pairs of pixels": (
        learning(FLOW, {"base": "edm", "pairs": "reflow", "space": "half"}),
        "models.x.space: base edm makes its pairs in another one; use null",
    ),
    "pairs of latents": (
        learning(FLOW | {"space": "half"}, {"base": "edm", "pairs": "reflow", "space": None}),
        "models.x.space: base edm makes its pairs in another one; use half",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_refused(tmp_path: Path, case: str) -> None:
    sections, message = BAD[case]
    assert refusal(tmp_path, **sections).startswith(message)


PHOTOS: dict[str, Any] = {"source": "photo_patches", "limit": 400}
POINTS: dict[str, Any] = {"data": {"source": "two_moons"}, "features": {"extractor": "coordinates"}}

BAD_WITH_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "a factor": (
        latents({"factor": 32}, space="half"),
        "autoencoders.half.factor: 32 does not divide images of 16 x 16; use a divisor of both",
    ),
    "a factor that no model uses": (alone(kind="pca", factor=3), "autoencoders.half.factor: 3 does not divide"),
    "components": (
        alone(kind="pca", factor=2, channels=13),
        "autoencoders.half.channels: patches of 3 x 2 x 2 have 12 components, not 13; use at most 12",
    ),
    "levels": (
        latents({"factor": 8}, space="half"),
        "models.x.multipliers: 3 levels halve the image 2 times, but 4 does",
    ),
    "a missing folder": (
        alone(kind="released", folder="nowhere"),
        "autoencoders.half.folder: nowhere: no config.json; use what diffusers' save_pretrained writes",
    ),
    "points": (
        POINTS | {"autoencoders": {"half": HALF}, "models": {"edm": {"network": "mlp", "space": "half"}}},
        "autoencoders.half: latents of points: autoencoders are for images; use space: null",
    ),
    "a resolution of points": (
        POINTS | {"models": {"edm": {"network": "mlp", "resolution": 4}}},
        "models.edm.resolution: 4 pixels high, but the data are points; leave it out",
    ),
    "a resolution": (
        {"models": {"edm": {"resolution": 5}}},
        "models.edm.resolution: images of 16 x 16 cannot be averaged to a height of 5; valid: 8, 4, 2, 1",
    ),
}


def with_data(**sections: Any) -> dict[str, Any]:
    """The files that `resolve` writes for the minimal study on patches of photographs, with some sections replaced."""
    text = dump(MINIMAL | {"data": PHOTOS} | sections, sort_keys=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())
        rows, _ = resolve_with_data(parse_study(text, Path("params.yaml")))
        return json.loads(json.dumps(rows.files()))


@pytest.mark.parametrize("case", BAD_WITH_DATA)
def test_what_does_not_go_with_the_data_is_refused(case: str) -> None:
    sections, message = BAD_WITH_DATA[case]
    with pytest.raises(StudyError) as caught:
        with_data(**sections)
    line = str(caught.value)
    assert line.startswith(message) and line.isprintable() and len(line) <= LONGEST_LINE


def test_resolve_writes_the_autoencoders_and_the_space_of_each_model(tmp_path: Path) -> None:
    models = {"edm": {}, "x": {"space": "half"}, "small": {"resolution": 8}, "s": {"base": "x", "channels": 32}}
    files = resolved(tmp_path, autoencoders={"half": HALF, "spare": {"kind": "pca"}}, models=models)
    half = AutoencoderRow(**HALF).model_dump(mode="json")
    assert files["autoencoders"] == {"half": half, "spare": AutoencoderRow(kind="pca").model_dump(mode="json")}
    assert files["spaces"] == {"edm": [None, None], "x": ["half", None], "small": [None, 8], "s": ["half", None]}
    rows = {name: Model(**files[f"models/{name}"]) for name in models}
    assert files["models/x"]["autoencoder"] == files["models/s"]["autoencoder"] == half
    assert files["models/edm"]["autoencoder"] is None
    assert {name: row.shape_in(SHAPE) for name, row in rows.items()} == {
        "edm": SHAPE,
        "x": (4, 8, 8),
        "small": (3, 8, 8),
        "s": (4, 8, 8),
    }


def test_another_autoencoder_changes_the_rows_of_its_models_alone(tmp_path: Path) -> None:
    models = {"edm": {}, "x": {"space": "half"}, "distilled": {"base": "x", "objective": "consistency_distillation"}}
    one, other = (resolved(tmp_path, **latents({"width": width}) | {"models": models}) for width in (32, 16))
    changed = {name for name in one if one[name] != other[name]} - {"report"}
    assert changed == {"autoencoders", "models/x", "models/distilled"}
    teacher = other["models/distilled"]["teacher"]
    assert teacher["autoencoder"]["width"] == 16


def test_the_content_of_a_released_autoencoder_reaches_every_row_that_uses_it(tmp_path: Path) -> None:
    write_released(tmp_path)
    models = {
        "edm": {},
        "x": {"space": "half", "multipliers": [1]},
        "distilled": {"base": "x", "objective": "consistency_distillation"},
    }

    def found() -> dict[str, Any]:
        return with_data(models=models, **alone(kind="released", folder=str(tmp_path)))

    files = found()
    content = files["autoencoders"]["half"]["content"]
    assert content and files["models/x"]["autoencoder"]["content"] == content
    assert files["models/distilled"]["teacher"]["autoencoder"]["content"] == content
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert found()["models/x"]["autoencoder"]["content"] != content


def test_pixels_are_limited_and_latents_are_not(tmp_path: Path) -> None:
    models = {"edm": {}, "x": {"space": "half"}}
    curves = {"edm": {"model": "edm", "threshold": "static"}, "x": {"model": "x", "threshold": "static"}}
    message = refusal(tmp_path, autoencoders={"half": HALF}, models=models, curves=curves)
    assert message == "curves.x.threshold: limits pixels, and model x makes latents; use none"


def test_reports_name_the_last_part_of_a_folder_alone(tmp_path: Path) -> None:
    write_released(tmp_path / "vae")
    keys = alone(kind="released", folder=str(tmp_path / "vae"))
    files = with_data(models={"edm": {}, "x": {"space": "half", "multipliers": [1]}}, **keys)
    assert files["autoencoders"]["half"]["folder"] == str(tmp_path / "vae")
    assert str(tmp_path) not in json.dumps(files["report"])
    assert ReportRows(**files["report"]).autoencoders["half"].folder == "vae"


def test_equal_flops_count_the_decoder(tmp_path: Path) -> None:
    """A wide decoder, spread over 35 evaluations, leaves the network fewer channels than a linear one does."""
    wide, row = {"width": 128, "blocks": 2}, {"base": "edm", "space": "half", "equal": "flops"}
    models = {"edm": {}, "x": row, "free": row | {"space": "components"}}
    autoencoders = {"half": HALF | wide, "components": {"kind": "pca", "factor": 2}}
    files = resolved(tmp_path, autoencoders=autoencoders, models=models)
    pixels, x, free = (Model(**files[f"models/{name}"]) for name in models)
    specs = [row.spec(0.5, SHAPE) for row in (pixels, x, free)]
    assert x.autoencoder
    decoding = decoder_size(x.autoencoder.spec(SHAPE)).flops / EQUAL_EVALUATIONS
    target, network, alone = (cost(spec).flops for spec in specs)
    assert decoding > 0.1 * target and specs[1].channels < specs[2].channels
    assert network + decoding == pytest.approx(target, rel=LARGEST_GAP)
    assert abs(network + decoding - target) < abs(alone + decoding - target)
