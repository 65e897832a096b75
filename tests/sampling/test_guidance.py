"""Guidance against closed forms on a mixture of classes, its cost, and the classes that samples get."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import NotFinite, StudyError
from pipeline.diffusion.denoiser import DenoiserFunction
from pipeline.diffusion.exact import LabelledMixture
from pipeline.sampling.batches import GROUP, generate
from pipeline.sampling.counting import Counted
from pipeline.sampling.guidance import (
    GUIDES,
    ByClass,
    Guidance,
    Guided,
    LabelledDenoiser,
    guided,
    sample_labels,
)
from pipeline.sampling.loop import sample
from pipeline.sampling.row import Sampler
from pipeline.sampling.solvers import SOLVERS

F64 = torch.float64
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
MEANS = torch.tensor([[1.0, 0.0], [-0.6, 0.8], [-0.4, -0.9]], dtype=F64)
EXACT = LabelledMixture(MEANS, SHARES, 0.3)
BLURRED = LabelledMixture(0.8 * MEANS, SHARES, 0.5)  # an earlier snapshot
LABELS = torch.tensor([0, 1, 2, 0, 1])
INTERVAL = (0.2, 5.0)

all_guides = pytest.mark.parametrize("guide", GUIDES)
all_solvers = pytest.mark.parametrize("solver", SOLVERS)
weights = pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.5])


def level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=F64)


def noise_of(count: int) -> Tensor:
    return torch.randn(count, 2, dtype=F64, generator=torch.Generator().manual_seed(0))


def by(guidance: Guidance, labels: Tensor | None = LABELS) -> DenoiserFunction:
    """The exact denoiser, guided by an exact guide of this kind."""
    return guided(guidance, EXACT, labels, BLURRED, EXACT)


def closed_form(guidance: Guidance, z: Tensor, sigma: Tensor) -> Tensor:
    """D_w of guidance at all noise levels, in terms of posterior means alone."""
    conditional, unconditional = EXACT(z, sigma, LABELS), EXACT(z, sigma)
    w = guidance.weight
    if guidance.guide == "snapshot":
        return w * conditional + (1 - w) * BLURRED(z, sigma, LABELS)
    return w * conditional + (1 - w) * unconditional  # Bayes' rule makes the classifier's the same


@all_guides
@weights
@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 80.0])
def test_guided_answers_are_their_closed_form(guide: str, weight: float, sigma: float) -> None:
    guidance, z = Guidance(weight, guide), level(sigma) * noise_of(5) + MEANS[LABELS]
    expected = closed_form(guidance, z, level(sigma))
    torch.testing.assert_close(by(guidance)(z, level(sigma)), expected, rtol=1e-9, atol=1e-10)


@all_guides
@weights
@pytest.mark.parametrize("row", [{}, {"solver": "dpmpp_2m"}, {"solver": "ddim", "eta": 1}, {"S_churn": 5}], ids=str)
def test_guided_trajectories_are_those_of_the_closed_form(guide: str, weight: float, row: dict[str, Any]) -> None:
    guidance, sampler = Guidance(weight, guide), Sampler(**row, nfe=(30,))
    ours = sample(by(guidance), noise_of(5), sampler, 12, torch.ones_like).x0
    expected = sample(lambda z, sigma: closed_form(guidance, z, sigma), noise_of(5), sampler, 12, torch.ones_like).x0
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


@all_guides
@pytest.mark.parametrize("weight", [0.5, 2.5])
def test_a_learned_variance_is_the_main_networks(guide: str, weight: float) -> None:
    """Also outside of the interval that guidance is limited to; D_w does not depend on it."""

    def with_variance(exact: LabelledMixture, v: float) -> LabelledDenoiser:
        return lambda z, sigma, labels=None: torch.cat([exact(z, sigma, labels), torch.full_like(z, v)], dim=1)

    guidance, main, other = Guidance(weight, guide, *INTERVAL), with_variance(EXACT, 0.3), with_variance(BLURRED, 0.9)
    for sigma in (0.1, 1.0):
        answer = guided(guidance, main, LABELS, other, EXACT)(noise_of(5), level(sigma))
        assert torch.equal(answer[:, :2], by(guidance)(noise_of(5), level(sigma)))
        assert torch.equal(answer[:, 2:], torch.full((5, 2), 0.3, dtype=F64))
    row = Sampler(solver="ddpm", variance="learned", guide=guide, guidance=weight, guidance_min=0.2, guidance_max=5.0)
    assert sample(guided(guidance, main, LABELS, other, EXACT), noise_of(5), row, 6).nfe == row.evaluations(6) > 6


def test_the_weight_goes_from_none_of_the_class_to_more_than_all_of_it() -> None:
    z, sigma = noise_of(5), level(1.0)
    assert by(Guidance(1.0, "unconditional"))(z, sigma).equal(EXACT(z, sigma, LABELS))
    assert by(Guidance(0.0, "unconditional"))(z, sigma).equal(EXACT(z, sigma))
    assert by(Guidance(0.0, "classifier"))(z, sigma).equal(EXACT(z, sigma))
    assert by(Guidance(1.0, "snapshot"))(z, sigma).equal(EXACT(z, sigma, LABELS))
    assert by(Guidance(0.0, "snapshot"))(z, sigma).equal(BLURRED(z, sigma, LABELS))


@all_guides
def test_guidance_acts_above_its_lower_end_up_to_its_upper(guide: str) -> None:
    guidance = Guidance(2.0, guide, *INTERVAL)
    z = noise_of(5)
    for sigma, inside in [(0.1, False), (0.2, False), (0.2001, True), (1.0, True), (5.0, True), (5.001, False)]:
        outside = EXACT(z, level(sigma), None if guide == "classifier" else LABELS)
        answer = by(guidance)(z, level(sigma))
        if inside:
            torch.testing.assert_close(answer, closed_form(guidance, z, level(sigma)), rtol=1e-9, atol=1e-10)
        assert answer.equal(outside) != inside


def test_an_interval_is_open_at_an_end_that_is_not_given() -> None:
    z = noise_of(5)
    for low, high, sigma in [(0.0, 5.0, 1e-9), (0.2, None, 1e9)]:
        answer = by(Guidance(2.0, "unconditional", low, high))(z, level(sigma))
        assert answer.equal(by(Guidance(2.0, "unconditional"))(z, level(sigma)))


class Calls:
    """Networks that record the noise levels of their calls."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def main(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append(("unlabelled" if labels is None else "labelled", float(sigma)))
        return EXACT(z, sigma, labels)

    def snapshot(self, z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append(("snapshot", float(sigma)))
        return BLURRED(z, sigma, labels)

    def log_gradient(self, z: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        self.seen.append(("classifier", float(sigma)))
        return EXACT.log_gradient(z, sigma, labels)


PARTS = {  # the networks asked at a noise level, by guide and weight
    ("unconditional", 0.0): ["unlabelled"],
    ("unconditional", 1.0): ["labelled"],
    ("unconditional", 2.0): ["labelled", "unlabelled"],
    ("snapshot", 0.0): ["snapshot"],
    ("snapshot", 1.0): ["labelled"],
    ("snapshot", 2.0): ["labelled", "snapshot"],
    ("classifier", 0.0): ["unlabelled"],
    ("classifier", 1.0): ["unlabelled", "classifier"],
    ("classifier", 2.0): ["unlabelled", "classifier"],
}


@pytest.mark.parametrize(("guide", "weight"), PARTS)
def test_no_network_is_asked_without_need_and_every_call_counts(guide: str, weight: float) -> None:
    calls = Calls()
    guidance = Guidance(weight, guide)
    counted = Counted(guided(guidance, calls.main, LABELS, calls.snapshot, calls))
    counted(noise_of(5), level(1.0))
    assert [name for name, _ in calls.seen] == PARTS[guide, weight]
    assert counted.nfe == guidance.evaluations == len(calls.seen)
    calls.seen.clear()
    by_interval = guided(Guidance(weight, guide, *INTERVAL), calls.main, LABELS, calls.snapshot, calls)
    Counted(by_interval)(noise_of(5), level(9.0))
    assert [name for name, _ in calls.seen] == ["unlabelled" if guide == "classifier" else "labelled"]


def test_every_guide_is_here() -> None:
    assert {guide for guide, _ in PARTS} == set(GUIDES)


ROWS: dict[str, dict[str, Any]] = {name: {"solver": name} for name in SOLVERS} | {
    "churned": {"S_churn": 20},
    "vp": {"schedule": "vp", "discretization": "vp"},
    "corrected": {"solver": "euler_maruyama", "corrector_steps": 2},
}
LIMITS: dict[str, dict[str, Any]] = {
    "everywhere": {},
    "between": {"guidance_min": 0.2, "guidance_max": 5.0},
    "below": {"guidance_max": 1.0},
    "above": {"guidance_min": 1.0},
    "nowhere": {"guidance_min": 79.8, "guidance_max": 79.9},  # no solver asks there
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("limits", LIMITS)
def test_what_is_counted_is_what_the_sampler_said(name: str, limits: str) -> None:
    """The levels at which a solver evaluates do not depend on the guide."""
    if name == "fitted" and limits != "everywhere":
        pytest.skip("its levels move across the limits")
    check_cost(name, limits, "unconditional", 2.0)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "rk45"])
@pytest.mark.parametrize("limits", ["everywhere", "between"])
@pytest.mark.parametrize(("guide", "weight"), PARTS)
def test_what_is_counted_is_what_every_guide_said(name: str, limits: str, guide: str, weight: float) -> None:
    if weight != GUIDES[guide].idle or limits == "everywhere":  # an idle guide has no limits
        check_cost(name, limits, guide, weight)


def check_cost(name: str, limits: str, guide: str, weight: float) -> None:
    row = Sampler(**ROWS[name], **LIMITS[limits], guide=guide, guidance=weight, nfe=(40,))
    steps = row.steps(17)
    if row.build_solver().adaptive:
        assert sample(by(row.build_guidance()), noise_of(5), row, steps).nfe >= row.evaluations(steps)
        return
    calls = Calls()
    denoiser = guided(row.build_guidance(), calls.main, LABELS, calls.snapshot, calls)
    for count in (steps, steps + 1):
        calls.seen.clear()
        nfe = sample(denoiser, noise_of(5), row.as_started(count), count, torch.ones_like).nfe
        assert nfe == len(calls.seen) == row.evaluations(count)
        assert (nfe <= 17) == (count == steps)
    own = row.build_solver().evaluations(steps)
    if limits == "everywhere":
        assert row.evaluations(steps) == own * len(PARTS[guide, weight])
    if limits == "nowhere":
        assert row.evaluations(steps) == own


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
def test_an_interval_costs_a_call_more_at_each_of_its_levels(solver: str) -> None:
    """Counted by hand: every level of the grid but the first is evaluated once by euler, twice by heun."""
    row = Sampler(solver=solver, guidance=2, guidance_min=0.2, guidance_max=5, nfe=(60,))
    levels = row.grid(12)[:-1]
    inside = (levels > 0.2) & (levels <= 5)
    times = torch.full((12,), 2 if solver == "heun" else 1)
    times[0] = 1
    assert row.evaluations(12) == int(times.sum() + (times * inside).sum())


@all_solvers
@pytest.mark.parametrize("part", ["main", "snapshot"])
def test_an_answer_that_is_not_finite_is_named_whichever_network_gave_it(solver: str, part: str) -> None:
    sigmas: list[float] = []

    def broken(z: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        sigmas.append(float(sigma))
        return torch.full_like(z, torch.nan) if len(sigmas) == 3 else EXACT(z, sigma, labels)

    networks = {"main": EXACT, "snapshot": BLURRED} | {part: broken}
    denoiser = guided(Guidance(2.0, "snapshot"), networks["main"], LABELS, networks["snapshot"])
    row = Sampler(solver=solver, guide="snapshot", guidance=2.0, nfe=(99,))
    with pytest.raises(NotFinite) as caught:
        sample(denoiser, noise_of(5), row.as_started(6), 6, torch.ones_like)
    step = 1
    if solver != "rk45":
        cost = row.build_solver().evaluations
        step = next(n for n in range(1, 7) if cost(n + 1) - cost(1) > 2)
    assert str(caught.value) == f"step {step} of 6, sigma {sigmas[2]:.4g}: the denoiser's answer is not finite"


@pytest.mark.parametrize(
    ("guide", "labels", "message"),
    [
        ("unconditional", None, "guide: unconditional needs a model of classes"),
        ("classifier", None, "guide: classifier needs labels and a classifier"),
        ("classifier", LABELS, "guide: classifier needs labels and a classifier"),
        ("snapshot", LABELS, "guide: snapshot needs an earlier snapshot"),
    ],
)
def test_a_guide_that_is_missing_is_an_error_of_one_line(guide: str, labels: Tensor | None, message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        guided(Guidance(2.0, guide), EXACT, labels)
    assert len(str(caught.value).splitlines()) == 1
    idle = guided(Guidance(GUIDES[guide].idle, guide), EXACT, labels)
    assert not isinstance(idle, Guided)


def test_a_snapshot_guides_without_classes() -> None:
    z, sigma = noise_of(5), level(1.0)
    answer = guided(Guidance(2.0, "snapshot"), EXACT, None, BLURRED)(z, sigma)
    torch.testing.assert_close(answer, 2 * EXACT(z, sigma) - BLURRED(z, sigma), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classes", [(10, 10, 10, 10), (178, 182, 177, 183, 181, 182, 181, 179, 174, 180), (7, 0, 1)])
@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("count", [10, 100, 1000])
def test_labels_are_as_frequent_as_in_the_data(classes: Sequence[int], seed: int, count: int) -> None:
    """Counts are within three samples of the shares; independent draws of 1000 would be off by ten or more."""
    labels = sample_labels(seed, range(count), classes)
    assert labels.dtype == torch.int64 and labels.shape == (count,)
    shares = torch.tensor(classes, dtype=F64) / sum(classes)
    found = torch.bincount(labels, minlength=len(classes))
    assert float((found - count * shares).abs().max()) < 3
    assert all(n == 0 for n, share in zip(found.tolist(), shares.tolist(), strict=True) if not share)


def test_a_label_depends_on_seed_and_number_alone() -> None:
    classes = (3, 1, 2, 5)
    whole = sample_labels(3, range(200), classes)
    assert sample_labels(3, [199, 0, 42, 42], classes).equal(whole[[199, 0, 42, 42]])
    assert not sample_labels(4, range(200), classes).equal(whole)


CLASSES = (5, 3, 2)


def labelled_images(row: Sampler, count: int, batch: int) -> tuple[Tensor, list[int]]:
    of_labels = lambda labels: guided(row.build_guidance(), EXACT, labels, BLURRED, EXACT)  # noqa: E731
    found = list(generate(ByClass(CLASSES, of_labels), (2,), row, row.steps(60), 4, count, batch))
    return torch.cat([images for images, _ in found]), [nfe for images, nfe in found for _ in images]


@all_guides
@pytest.mark.parametrize("solver", ["heun", "euler_maruyama", "rk45"])
def test_labelled_samples_do_not_depend_on_batches_or_their_number(
    guide: str, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a batch is padded to MIN_BATCH or to a group of an adaptive solver."""
    monkeypatch.setattr("pipeline.sampling.batches.to_data", lambda x: x)
    row = Sampler(solver=solver, guide=guide, guidance=2, nfe=(40,))
    whole, nfe = labelled_images(row, 100, 512)
    for count, batch in [(100, 33), (100, 16), (15, 64), (GROUP + 1, 64)]:
        part, of_part = labelled_images(row, count, batch)
        assert part.equal(whole[:count]) and of_part == nfe[:count]


def test_samples_are_of_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest mean of each sample is that of its class, under strong guidance."""
    monkeypatch.setattr("pipeline.sampling.batches.to_data", lambda x: x)
    samples, _ = labelled_images(Sampler(guidance=1.5, nfe=(60,)), 100, 64)
    assert torch.cdist(samples, MEANS).argmin(1).equal(sample_labels(4, range(100), CLASSES))


def test_the_classes_of_a_mixture_go_by_bayes_rule() -> None:
    """D without a class is the mean of the classes' D under the posterior, and the gradient equals autograd's."""
    z, sigma = 2 * noise_of(5), torch.logspace(-1, 1, 5, dtype=F64)
    posterior = EXACT.log_posterior(z, sigma).exp()
    own = torch.stack([EXACT(z, sigma, torch.full((5,), k)) for k in range(3)], 1)
    torch.testing.assert_close(EXACT(z, sigma), (posterior[:, :, None] * own).sum(1), rtol=1e-10, atol=1e-12)
    at = z.clone().requires_grad_()
    chosen = EXACT.log_posterior(at, sigma).gather(1, LABELS[:, None]).sum()
    [gradient] = torch.autograd.grad(chosen, at)
    torch.testing.assert_close(EXACT.log_gradient(z, sigma, LABELS), gradient, rtol=1e-8, atol=1e-10)
    some = torch.tensor([0, -1, 2, -1, 1])
    mixed = EXACT(z, sigma, some)
    assert mixed[some < 0].equal(EXACT(z, sigma)[some < 0])
    assert mixed[some >= 0].equal(EXACT(z, sigma, some.clamp(min=0))[some >= 0])
