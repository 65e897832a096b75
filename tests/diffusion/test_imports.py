"""Released networks: equal to the papers' formulas, and named faults in files that are not what they say."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from pipeline.commands.cli import main
from pipeline.common.errors import StudyError
from pipeline.diffusion.denoiser import load_denoiser, new_denoiser, save_denoiser
from pipeline.diffusion.imports.read import read_network
from pipeline.diffusion.networks.registry import build, cost
from pipeline.diffusion.schedule import ddpm_sigmas, iddpm_sigmas
from pipeline.diffusion.spec import Spec
from tests.diffusion.pickled import network, released
from tests.diffusion.test_networks import CIFAR10

SIDE, CLASSES, BATCH = 8, 3, 3
SONG = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.13}
NCSN = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
WIDE = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


@dataclass(frozen=True)
class Case:
    """A released network. given: the arguments of its class; state: constants of its preconditioning."""

    preconditioning: str
    inner: str
    network: str
    parametrization: str
    given: dict[str, Any]
    state: dict[str, Any]
    labels: bool = False

    @property
    def spec(self) -> Spec:
        return Spec(
            parametrization=self.parametrization,
            sigma_data=0.5,
            shape=(2, SIDE, SIDE),
            network=self.network,
            channels=self.given["model_channels"],
            multipliers=tuple(self.given["channel_mult"]),
            blocks=self.given["num_blocks"],
            attention=tuple(self.given["attn_resolutions"]),
            patch=2,
            embedding="fourier" if "embedding_type" in self.given else "positional",
            dropout=0.0,
            memory_format="channels_last",
            augmentation=self.given.get("augment_dim", 0),
            classes=(1,) * CLASSES if self.labels else (),
            learned_variance=self.parametrization == "iddpm",
        )

    def weights(self) -> dict[str, Tensor]:
        draws = torch.Generator().manual_seed(0)
        state = build(self.spec).state_dict()
        return {name: t if "filter" in name else _drawn(name, t, draws) for name, t in state.items()}

    def content(self, tensors: dict[str, Tensor] | None = None, **changes: Any) -> bytes:
        about = {"img_resolution": SIDE, "img_channels": 2, "label_dim": CLASSES if self.labels else 0} | self.state
        tensors = self.weights() if tensors is None else tensors
        given = self.given | changes.pop("given", {})
        return released(network(self.preconditioning, self.inner, given, tensors, **about | changes))


def _drawn(name: str, like: Tensor, draws: torch.Generator) -> Tensor:
    value = torch.randn(like.shape, generator=draws)
    return value if like.ndim < 2 or "freqs" in name else value / math.sqrt(like[0].numel())


VP = {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}
CASES = {
    "ddpmpp edm": Case("EDMPrecond", "SongUNet", "edm_ddpmpp", "edm", SONG | {"augment_dim": 9}, {"sigma_data": 0.5}),
    "ddpmpp labels": Case("EDMPrecond", "SongUNet", "edm_ddpmpp", "edm", SONG, {"sigma_data": 0.5}, labels=True),
    "ddpmpp vp": Case("VPPrecond", "SongUNet", "edm_ddpmpp", "vp", SONG, VP),
    "ncsnpp ve": Case("VEPrecond", "SongUNet", "edm_ncsnpp", "ve", SONG | NCSN, {"sigma_min": 0.02}),
    "ncsnpp labels": Case("EDMPrecond", "SongUNet", "edm_ncsnpp", "edm", SONG | NCSN, {"sigma_data": 0.5}, labels=True),
    "adm edm": Case("EDMPrecond", "DhariwalUNet", "edm_adm", "edm", WIDE, {"sigma_data": 0.5}, labels=True),
    "adm iddpm": Case(
        "iDDPMPrecond", "DhariwalUNet", "edm_adm", "iddpm", WIDE, {"C_1": 1e-3, "C_2": 8e-3, "M": 1000}, labels=True
    ),
    "edm2": Case("Precond", "UNet", "edm2", "edm", WIDE, {"sigma_data": 0.5}, labels=True),
    "edm2 unconditional": Case("Precond", "UNet", "edm2", "edm", WIDE, {"sigma_data": 0.5}),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def told(case: Case, sigma: float) -> tuple[float, float, float, float]:
    """c_skip, c_out, c_in and c_noise of EDM's Table 1."""
    if case.parametrization == "edm":
        total = sigma**2 + 0.25
        return 0.25 / total, sigma * 0.5 / math.sqrt(total), 1 / math.sqrt(total), math.log(sigma) / 4
    if case.parametrization == "ve":
        return 1.0, sigma, 1.0, math.log(sigma / 2)
    if case.parametrization == "vp":
        time = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9
        return 1.0, -sigma, 1 / math.sqrt(1 + sigma**2), 999 * time
    nearest = int((iddpm_sigmas() - sigma).abs().argmin())
    return 1.0, -sigma, 1 / math.sqrt(1 + sigma**2), 999.0 - nearest


class Plain:
    """The networks written out with torch.nn.functional: arXiv 2206.00364, app. F.2; 2312.02696, app. B."""

    def __init__(self, case: Case, w: dict[str, Tensor]) -> None:
        self.case, self.w, self.song = case, w, case.inner == "SongUNet"
        self.eps, self.root = (1e-6, math.sqrt(0.5)) if self.song else (1e-5, 1.0)
        self.multipliers, self.blocks = case.given["channel_mult"], case.given["num_blocks"]
        self.taps = torch.tensor([float(tap) for tap in case.given.get("resample_filter", [1, 1])])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def conv(self, name: str, x: Tensor, padding: int | None = None) -> Tensor:
        kernel = self.w[f"{name}.weight"]
        return F.conv2d(
            x, kernel, self.w[f"{name}.bias"], padding=kernel.shape[-1] // 2 if padding is None else padding
        )

    def norm(self, name: str, x: Tensor) -> Tensor:
        groups = min(32, x.shape[1] // 4)
        return F.group_norm(x, groups, self.w[f"{name}.weight"], self.w[f"{name}.bias"], self.eps)

    def down(self, x: Tensor, padding: int | None = None) -> Tensor:
        """Filter rows, then columns, and keep every other pixel."""
        pad = (len(self.taps) - 1) // 2 if padding is None else padding
        taps = (self.taps / self.taps.sum()).expand(x.shape[1], 1, -1)
        x = F.conv2d(F.pad(x, (pad,) * 4), taps[:, :, :, None], groups=x.shape[1])
        return F.conv2d(x, taps[:, :, None], groups=x.shape[1])[:, :, ::2, ::2]

    def up(self, x: Tensor) -> Tensor:
        """Zeros between pixels, then the filter with a gain of 4."""
        spread = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        spread[:, :, ::2, ::2] = x
        pad, taps = len(self.taps) // 2, (2 * self.taps / self.taps.sum()).expand(x.shape[1], 1, -1)
        spread = F.pad(spread, (pad, pad - 1, pad, pad - 1))
        return F.conv2d(F.conv2d(spread, taps[:, :, :, None], groups=x.shape[1]), taps[:, :, None], groups=x.shape[1])

    def attended(self, qkv: Tensor, heads: int, normalize: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Attention of one image after the other: q, k and v are every third channel of each head."""
        count, channels, height, width = qkv.shape
        out = []
        for image in qkv.reshape(count, heads, channels // 3 // heads, 3, height * width):
            parts = []
            for head in image:
                q, k, v = (normalize(head[:, i]) for i in range(3))
                parts.append(v @ (q.T @ k / math.sqrt(len(q))).softmax(dim=1).T)
            out.append(torch.cat(parts))
        return torch.stack(out).reshape(count, channels // 3, height, width)

    def block(self, name: str, x: Tensor, embedding: Tensor) -> Tensor:
        resample = self.down if name.endswith("_down") else self.up if name.endswith("_up") else None
        h = F.silu(self.norm(f"{name}.norm0", x))
        h = self.conv(f"{name}.conv0", resample(h) if resample else h)
        shift = self.linear(f"{name}.affine", embedding)[:, :, None, None]
        if self.song:
            h = self.norm(f"{name}.norm1", h + shift)
        else:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm(f"{name}.norm1", h) * (1 + scale) + shift
        h = self.conv(f"{name}.conv1", F.silu(h))
        x = resample(x) if resample else x
        x = (self.conv(f"{name}.skip", x) if f"{name}.skip.weight" in self.w else x) * self.root + h * self.root
        if f"{name}.qkv.weight" not in self.w:
            return x
        heads = 1 if self.song else x.shape[1] // 64
        found = self.attended(self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x)), heads)
        return (x + self.conv(f"{name}.proj", found)) * self.root

    def names(self) -> tuple[list[str], list[str]]:
        """The layers of the encoder and of the decoder, in order."""
        sides = [SIDE >> level for level in range(len(self.multipliers))]
        encoder, decoder = [f"{SIDE}x{SIDE}_conv"], list[str]()
        for level, side in enumerate(sides):
            encoder += [f"{side}x{side}_down"] * (level > 0)
            encoder += [f"{side}x{side}_block{i}" for i in range(self.blocks)]
        for side in reversed(sides):
            decoder += [f"{side}x{side}_{part}" for part in (("in0", "in1") if side == sides[-1] else ("up",))]
            decoder += [f"{side}x{side}_block{i}" for i in range(self.blocks + 1)]
        return encoder, decoder

    def embedding(self, c_noise: Tensor, label: Tensor) -> Tensor:
        if "map_noise.freqs" in self.w:
            angles = 2 * math.pi * c_noise[:, None] * self.w["map_noise.freqs"]
        else:
            half = self.case.given["model_channels"] // 2
            angles = c_noise[:, None] * 10_000 ** (-torch.arange(half) / (half - self.song))
        found = torch.cat([angles.sin(), angles.cos()] if self.song else [angles.cos(), angles.sin()], dim=1)
        if self.song and self.case.labels:
            found = found + self.linear("map_label", label * math.sqrt(CLASSES))
        found = self.linear("map_layer1", F.silu(self.linear("map_layer0", found)))
        return F.silu(found + (self.linear("map_label", label) if not self.song and self.case.labels else 0))

    def __call__(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        if self.case.inner == "UNet":
            return self.edm2(x, c_noise, label)
        embedding, (encoder, decoder) = self.embedding(c_noise, label), self.names()
        skips, seen = [], x
        for name in encoder:
            x = self.conv(f"enc.{name}", x) if name.endswith("_conv") else self.block(f"enc.{name}", x, embedding)
            aux = f"enc.{name.removesuffix('_down')}_aux_residual"
            if f"{aux}.weight" in self.w:
                x = seen = (x + self.down(self.conv(aux, seen, padding=2), padding=0)) / math.sqrt(2)
            skips.append(x)
        for name in decoder:
            x = torch.cat([x, skips.pop()], dim=1) if "block" in name else x
            x = self.block(f"dec.{name}", x, embedding)
        out = f"dec.{SIDE}x{SIDE}_aux" if self.song else "out"
        return self.conv(f"{out}_conv", F.silu(self.norm(f"{out}_norm", x)))

    def edm2(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        w = {n: unit(v, tuple(range(1, v.ndim))) / math.sqrt(v[0].numel()) for n, v in self.w.items() if v.ndim > 1}
        waves = (c_noise[:, None] * self.w["emb_fourier.freqs"] + self.w["emb_fourier.phases"]).cos() * math.sqrt(2)
        embedding = waves @ w["emb_noise.weight"].T
        if self.case.labels:
            told = (label * math.sqrt(CLASSES)) @ w["emb_label.weight"].T
            embedding = (embedding + told) / math.sqrt(2)
        embedding = F.silu(embedding) / 0.596
        encoder, decoder = self.names()
        x, skips = torch.cat([x, torch.ones(len(x), 1, SIDE, SIDE)], dim=1), []
        for name in (*(f"enc.{name}" for name in encoder), *(f"dec.{name}" for name in decoder)):
            if name.endswith("_conv"):
                x = F.conv2d(x, w[f"{name}.weight"], padding=1)
            else:
                if "dec" in name and "block" in name:
                    a, b = x, skips.pop()
                    scale = math.sqrt((a.shape[1] + b.shape[1]) / 2)
                    x = torch.cat([a * scale / math.sqrt(a.shape[1]), b * scale / math.sqrt(b.shape[1])], dim=1)
                x = self.edm2_block(name, x, embedding, w)
            if name.startswith("enc"):
                skips.append(x)
        return F.conv2d(x, w["out_conv.weight"] * self.w["out_gain"], padding=1)

    def edm2_block(self, name: str, x: Tensor, embedding: Tensor, w: dict[str, Tensor]) -> Tensor:
        x = self.down(x) if name.endswith("_down") else self.up(x) if name.endswith("_up") else x
        skip = w.get(f"{name}.conv_skip.weight")
        if name.startswith("enc"):
            x = unit(x if skip is None else F.conv2d(x, skip), (1,))
        h = F.conv2d(F.silu(x) / 0.596, w[f"{name}.conv_res0.weight"], padding=1)
        gain = embedding @ (w[f"{name}.emb_linear.weight"] * self.w[f"{name}.emb_gain"]).T
        h = F.silu(h * (gain[:, :, None, None] + 1)) / 0.596
        h = F.conv2d(h, w[f"{name}.conv_res1.weight"], padding=1)
        if name.startswith("dec") and skip is not None:
            x = F.conv2d(x, skip)
        x = (0.7 * x + 0.3 * h) / math.sqrt(0.58)
        if f"{name}.attn_qkv.weight" in w:
            qkv = F.conv2d(x, w[f"{name}.attn_qkv.weight"])
            found = self.attended(qkv, x.shape[1] // 64, lambda part: unit(part, (0,)))
            x = (0.7 * x + 0.3 * F.conv2d(found, w[f"{name}.attn_proj.weight"])) / math.sqrt(0.58)
        return x.clamp(-256, 256)


def unit(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x / (x.square().mean(dim=dims, keepdim=True).sqrt() + 1e-4)


@each_case
def test_equals_the_formulas_of_its_paper(case: Case, tmp_path: Path) -> None:
    """Every preconditioning and network, from the pickle and after the round trip through our own file."""
    weights = case.weights()
    (tmp_path / "network.pkl").write_bytes(case.content(weights))
    denoiser = read_network(tmp_path / "network.pkl")
    assert denoiser.spec == case.spec
    save_denoiser(denoiser, tmp_path / "network.safetensors")
    again = load_denoiser(tmp_path / "network.safetensors")
    plain, draws = Plain(case, weights), torch.Generator().manual_seed(1)
    for sigma in (0.05, 1.3, 30.0):
        z = sigma * torch.randn(BATCH, 2, SIDE, SIDE, generator=draws)
        labels = torch.tensor([2, 0, -1])  # no class is all zeros
        label = torch.cat([torch.eye(CLASSES)[labels[:2]], torch.zeros(1, CLASSES)])
        c_skip, c_out, c_in, c_noise = told(case, sigma)
        f = plain(c_in * z, torch.full((BATCH,), c_noise), label)[:, :2]
        expected = c_skip * z + c_out * f
        found = denoiser(z, torch.tensor(sigma), labels if case.labels else None)
        assert (found - expected).abs().max() < 1e-5 * max(expected.abs().max(), 1)
        assert torch.equal(found, again(z, torch.tensor(sigma), labels if case.labels else None))


def refused(tmp_path: Path, content: bytes) -> str:
    """The line that refuses a pickle, without the path."""
    (tmp_path / "network.pkl").write_bytes(content)
    with pytest.raises(StudyError) as error:
        read_network(tmp_path / "network.pkl")
    return str(error.value).removeprefix(f"{tmp_path / 'network.pkl'}: ")


DDPMPP, VP_CASE, IDDPM, EDM2 = (CASES[name] for name in ("ddpmpp labels", "ddpmpp vp", "adm iddpm", "edm2"))
ADM = {"model_channels": 64, "channel_mult_emb": 2}


@pytest.mark.parametrize(
    ("case", "changes", "reason"),
    [
        (VP_CASE, {"beta_d": 20.0}, "VPPrecond has beta_d 20.0; only the published 19.9 is supported"),
        (VP_CASE, {"M": 500}, "VPPrecond has M 500; only the published 1000 is supported"),
        (IDDPM, {"C_2": 0.1}, "iDDPMPrecond has C_2 0.1; only the published 0.008 is supported"),
        (IDDPM, {"given": ADM}, "DhariwalUNet has channel_mult_emb 2; only 4 is supported"),
        (DDPMPP, {"given": {"encoder_type": "skip"}}, "SongUNet has encoder_type skip; only standard is supported"),
        (DDPMPP, {"given": {"embedding_type": "fourier"}}, "SongUNet has resample_filter [1, 1]; only [1, 3, 3, 1] is"),
        (DDPMPP, {"given": {"embedding_type": "fouriers"}}, "SongUNet has embedding_type fouriers; did you mean 'four"),
        (DDPMPP, {"given": {"resample_filter": [1, 2]}}, "SongUNet has resample_filter [1, 2]; only [1, 1] is"),
        (DDPMPP, {"given": {"heads": 4}}, "SongUNet has the unknown argument heads"),
        (DDPMPP, {"given": {"num_blocks": "4"}}, "num_blocks: takes whole numbers from 0 to 256"),
        (DDPMPP, {"img_resolution": 10**9}, "img_resolution: takes whole numbers from 1 to 65536"),
        (DDPMPP, {"sigma_data": -0.5}, "sigma_data: takes a positive number"),
        (DDPMPP, {"label_dim": 10**6}, "model.map_label.weight has the shape (16, 3), not (16, 1000000)"),
        (DDPMPP, {"img_resolution": 7}, "multipliers: 2 levels halve the image 1 times, but 2 does not divide both"),
        (EDM2, {"given": {"clip_act": None}}, "UNet has clip_act None; only 256 is supported"),
    ],
)
def test_refuses_settings_without_a_counterpart(
    case: Case, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert refused(tmp_path, case.content(**changes)).removeprefix("model.").startswith(reason.removeprefix("model."))


def test_names_tensors_that_lack_and_that_are_too_many(tmp_path: Path) -> None:
    weights = DDPMPP.weights()
    fewer = {name: value for name, value in weights.items() if name != "map_layer1.bias"}
    assert "it lacks the tensor map_layer1.bias, so" in refused(tmp_path, DDPMPP.content(fewer))
    more = weights | {"enc.8x8_block7.conv0.weight": torch.ones(1)}
    assert "it has the surplus tensor enc.8x8_block7.conv0.weight, so" in refused(tmp_path, DDPMPP.content(more))
    wide = weights | {"map_layer1.bias": torch.zeros(65)}
    assert refused(tmp_path, DDPMPP.content(wide)) == "map_layer1.bias has the shape (65,), not (64,)"
    infinite = weights | {"map_layer1.bias": torch.full((64,), math.inf)}
    assert refused(tmp_path, DDPMPP.content(infinite)) == "map_layer1.bias has values that are not finite numbers"


def test_names_unknown_classes(tmp_path: Path) -> None:
    unknown = released(network("EDMPrecnd", "SongUNet", SONG, DDPMPP.weights(), **DDPMPP.state))
    assert refused(tmp_path, unknown).startswith("unknown class EDMPrecnd; did you mean 'EDMPrecond'? valid: EDMPrecon")
    unknown = released(network("EDMPrecond", "SongNet", SONG, DDPMPP.weights(), **DDPMPP.state))
    assert refused(tmp_path, unknown).startswith("unknown class SongNet; did you mean 'SongUNet'? valid: DhariwalUNet")


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    """EDM2's files are in float16."""
    weights = {name: value.half() for name, value in EDM2.weights().items()}
    (tmp_path / "network.pkl").write_bytes(EDM2.content(weights))
    state = read_network(tmp_path / "network.pkl").network.state_dict()
    assert all(torch.equal(state[name], value.float()) for name, value in weights.items())


def test_has_the_size_of_the_published_network() -> None:
    """DDPM++ for CIFAR-10 with EDM's numbers of augmentation (app. F.2)."""
    spec = Spec(**vars(CIFAR10) | {"network": "edm_ddpmpp"})
    assert cost(spec).parameters == 55_733_891


def test_edm2_normalizes_its_weights_in_training() -> None:
    denoiser = new_denoiser(CASES["edm2"].spec, 0).train()
    denoiser(torch.ones(1, 2, SIDE, SIDE), torch.tensor(1.0))
    for name, weight in denoiser.named_parameters():
        if weight.ndim > 1 and "label" not in name:
            assert torch.allclose(weight.square().mean(dim=tuple(range(1, weight.ndim))), torch.tensor(1.0), atol=1e-3)


def write_folder(folder: Path, scheduler: dict[str, Any], **changes: Any) -> Any:
    """A tiny UNet2DModel of random weights, as diffusers' pipeline writes it; the network."""
    from diffusers import UNet2DModel

    config = {
        "sample_size": SIDE,
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(**config | changes).eval()
    unet.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    known = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(known | scheduler))
    return unet


@torch.no_grad()
@pytest.mark.parametrize("target", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
def test_equals_diffusers(betas: str, target: str, tmp_path: Path) -> None:
    """The step to x0 of diffusers' own scheduler, at its own noise levels."""
    from diffusers import DDPMScheduler

    unet = write_folder(tmp_path / "ddpm", {"beta_schedule": betas, "prediction_type": target})
    denoiser = read_network(tmp_path / "ddpm")
    scheduler = DDPMScheduler(beta_schedule=betas, prediction_type=target, clip_sample=False)
    levels = ddpm_sigmas() if betas == "linear" else iddpm_sigmas().flip(0)[1:]
    save_denoiser(denoiser, tmp_path / "network.safetensors")
    again = load_denoiser(tmp_path / "network.safetensors")
    for t in (0, 3, 500, 950):
        x = torch.randn(BATCH, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(t))
        expected = scheduler.step(unet(x, t).sample, t, x).pred_original_sample
        z = x * float((1 + levels[t] ** 2).sqrt())
        found = denoiser(z, levels[t])
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
        assert torch.equal(found, again(z, levels[t]))


@pytest.mark.parametrize(
    ("scheduler", "changes", "reason"),
    [
        ({"beta_end": 0.03}, {}, "scheduler: beta_end 0.03; only 0.02 is supported"),
        ({"beta_schedule": "scaled_linear"}, {}, "scheduler: beta_schedule scaled_linear; did you mean 'linear'?"),
        ({"prediction_type": "flow"}, {}, "scheduler: prediction_type flow; valid: epsilon, sample, v_prediction"),
        ({"num_train_timesteps": 50}, {}, "scheduler: num_train_timesteps 50; only 1000 is supported"),
        ({}, {"num_class_embeds": 3}, "config.json: a network with labels"),
        ({}, {"out_channels": 3}, "config.json: 2 channels in and 3 out; only as many, or twice as many, work"),
    ],
)
def test_refuses_folders_without_a_counterpart(
    scheduler: dict[str, Any], changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    write_folder(tmp_path / "ddpm", scheduler, **changes)
    with pytest.raises(StudyError) as error:
        read_network(tmp_path / "ddpm")
    assert str(error.value).startswith(f"{tmp_path / 'ddpm'}: {reason}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "no JSON (maximum recursion depth exceeded"),
        ('{"layers_per_block": 10000000}', "config.json: layers_per_block takes at most 16 values, and whole numbers"),
        ('{"block_out_channels": [1' + ", 1" * 16 + "]}", "config.json: block_out_channels takes at most 16 values"),
        ('{"sample_size": [8, 1e400, 1000000]}', "config.json: sample_size takes at most 16 values, and whole numbers"),
    ],
)
def test_refuses_hostile_configurations(content: str, reason: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "ddpm", {})
    config = tmp_path / "ddpm/unet/config.json"
    if content.startswith("{"):
        content = json.dumps(json.loads(config.read_text()) | json.loads(content))
    config.write_text(content)
    with pytest.raises(StudyError) as error:
        read_network(tmp_path / "ddpm")
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_names_a_folder_without_weights_or_of_others(tmp_path: Path) -> None:
    write_folder(tmp_path / "ddpm", {})
    weights = tmp_path / "ddpm/unet/diffusion_pytorch_model.safetensors"
    save_file({"conv_in.weight": torch.ones(1)}, weights)
    with pytest.raises(StudyError, match=r"it lacks the tensor unet\.conv_in\.bias and"):
        read_network(tmp_path / "ddpm")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(StudyError, match=r"missing, and pickles \(.bin\) are not read"):
        read_network(tmp_path / "ddpm")


def test_the_command_writes_a_file_of_our_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, source, out = DDPMPP.content(), tmp_path / "network.pkl", tmp_path / "network.safetensors"
    source.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    command = ["import", str(source), "--out", str(out)]
    assert main([*command, "--sha256", found]) == 0
    parameters = cost(DDPMPP.spec).parameters
    about = f"edm_ddpmpp, parametrization edm, 2 x 8 x 8, 3 classes, {parameters:,} parameters, from sha256 {found}"
    assert capsys.readouterr().out == f"{out}: {about}\n"
    assert load_denoiser(out).spec == DDPMPP.spec
    assert main(["import", str(out), "--out", str(tmp_path / "again.safetensors")]) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "network.pkl", tmp_path / "network.safetensors"
    assert main(["import", str(source), "--out", str(out)]) == 1
    assert capsys.readouterr().err == f"error: {source}: no such file or folder\n"
    source.write_bytes(b"text")
    assert main(["import", str(source), "--out", str(tmp_path / "network.pt")]) == 1
    assert "write a name that ends in .safetensors" in capsys.readouterr().err
    assert main(["import", str(source), "--out", str(out), "--sha256", "ab" * 32]) == 1
    found = hashlib.sha256(b"text").hexdigest()
    assert f"its sha256 is {found}, not {'ab' * 32}" in capsys.readouterr().err
    assert main(["import", str(source), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {source}: not the pickle of a released network (")
    assert not out.exists()
