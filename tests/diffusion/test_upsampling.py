"""Low-resolution images of upsamplers: sizes, enlarging, augmentation, and what networks are told."""

import pytest
import torch

from pipeline.common.errors import StudyError
from pipeline.diffusion.upsampling import Low, averaged, blurred, conditioning, enlarged, low_shape

X = torch.randn(5, 3, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "low"), [(4, (3, 4, 6)), (2, (3, 2, 3))])
def test_images_are_averaged_over_whole_squares(height: int, low: tuple[int, ...]) -> None:
    assert low_shape((3, 8, 12), height, "x") == low == averaged(X, height).shape[1:]
    factor = 8 // height
    assert averaged(X, height)[2, 1, 1, 2] == pytest.approx(
        float(X[2, 1, factor : 2 * factor, 2 * factor : 3 * factor].mean()), abs=1e-6
    )


@pytest.mark.parametrize("height", [1, 3, 5, 8, 16])
def test_heights_that_no_whole_factor_gives_are_refused(height: int) -> None:
    with pytest.raises(StudyError, match=rf"^upsampler.from: images of 8 x 12 .* height of {height}; valid: 4, 2$"):
        low_shape((3, 8, 12), height, "upsampler.from")


def test_points_have_no_height() -> None:
    with pytest.raises(StudyError, match=r"^resolution: 4 pixels high, but the data are points"):
        low_shape((2,), 4, "resolution")


def test_enlarging_keeps_constants_and_means() -> None:
    low = averaged(X, 4)
    large = enlarged(low, (8, 12))
    assert large.shape == X.shape
    torch.testing.assert_close(enlarged(torch.full((1, 1, 2, 3), 0.3), (8, 12)), torch.full((1, 1, 8, 12), 0.3))
    torch.testing.assert_close(large.mean((2, 3)), low.mean((2, 3)), atol=0.1, rtol=0)


def test_a_blur_is_a_gaussian_of_its_width_and_0_changes_nothing() -> None:
    """The variance of a blurred impulse is that of the kernel, as far as its reach shows it."""
    impulse = torch.zeros(3, 1, 33, 33)
    impulse[:, :, 16, 16] = 1
    std = torch.tensor([0.0, 1.0, 2.0])
    found = blurred(impulse, std, 2.0)
    place = torch.arange(33) - 16.0
    spread = (found.sum((1, 2)) * place**2).sum(1)
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(spread, std**2, rtol=0.03, atol=1e-6)
    torch.testing.assert_close(found.transpose(2, 3), found)
    assert blurred(X, torch.zeros(5), 2.0).allclose(X, atol=1e-6)


@pytest.mark.parametrize("augmentation", ["noise", "blur"])
def test_what_a_network_gets_does_not_depend_on_the_batch(augmentation: str) -> None:
    low = Low(averaged(X, 4), torch.linspace(0, 2, 5))
    images, told = conditioning(low, (8, 12), 0.5, augmentation, 2.0)
    for part in (slice(0, 2), slice(3, 5), slice(1, 2)):
        own = conditioning(low.part(part), (8, 12), 0.5, augmentation, 2.0)
        assert own[0].equal(images[part]) and own[1].equal(told[part])


def test_inputs_have_about_unit_variance_and_strengths_up_to_1() -> None:
    n = torch.randn(2000, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    low = Low(n * (0.5**2 + 1.5**2) ** 0.5, torch.full((2000,), 1.5))
    images, told = conditioning(low, (4, 4), 0.5, "noise", 3.0)
    assert (
        float(images.std()) == pytest.approx(1, abs=0.02)
        and told.shape == (2000, 1)
        and told.unique().tolist() == [0.5]
    )
    assert not conditioning(Low(n, torch.zeros(2000)), (4, 4), 0.5, "noise", 0.0)[1].any()
