"""How the quantiles u of a batch's noise are drawn: independently, evenly, or more where the loss is large.

`draw(count, generator)` returns u and weights, float64 (count,) each, with u in (0, 1). The mean of weight * f(u) has
the expectation E f(U) for uniform U. `learn(u, losses)`, both (N,), adapts later draws. `state` is the whole state, as
one tensor.
"""

import torch
from torch import Tensor

SMALLEST = 2.0**-53  # u is never 0


class Independent:
    """Each u is drawn independently."""

    def __init__(self) -> None:
        self.state = torch.zeros(0, dtype=torch.float64)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        u = torch.rand(count, dtype=torch.float64, generator=generator).clamp(min=SMALLEST)
        return u, torch.ones_like(u)

    def learn(self, u: Tensor, losses: Tensor) -> None:
        pass


class Stratified(Independent):
    """The batch of n images has one u in each of n equal intervals of (0, 1).

    Source: Kingma et al. 2021, arXiv 2107.00630, app. I.1
    """

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        u, weight = super().draw(count, generator)
        return (torch.arange(count) + u) / count, weight


class Adaptive(Independent):
    """More draws where the loss is large, with less weight on each; the objective is unchanged.

    (0, 1) has STRETCHES equal intervals, each drawn in proportion to the root of its mean squared loss so far. A share
    UNIFORM of the draws is uniform, and all are until each interval has been drawn ENOUGH times. Kingma and Gao show
    why the objective is unchanged.

    Source: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 18;
        Kingma and Gao 2023, arXiv 2303.00848, sec. 3.2
    """

    STRETCHES, UNIFORM, RATE, ENOUGH = 32, 0.1, 0.02, 10

    def __init__(self) -> None:
        self.state = torch.zeros(2, self.STRETCHES, dtype=torch.float64)  # mean squared losses, and draws seen

    def shares(self) -> Tensor:
        """The probability of each interval, (STRETCHES,)."""
        squares, seen = self.state
        uniform = torch.full_like(squares, 1 / self.STRETCHES)
        roots = squares.sqrt()
        adapted = (1 - self.UNIFORM) * roots / roots.sum().clamp(min=1e-300) + self.UNIFORM * uniform
        return torch.where((seen >= self.ENOUGH).all(), adapted, uniform)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        position, _ = super().draw(count, generator)
        shares = self.shares()
        ends = shares.cumsum(0)
        stretch = torch.searchsorted(ends, position).clamp(max=self.STRETCHES - 1)
        within = (1 - (ends[stretch] - position) / shares[stretch]).clamp(0, 1)
        u = ((stretch + within) / self.STRETCHES).clamp(SMALLEST, 1 - SMALLEST)
        return u, 1 / (shares[stretch] * self.STRETCHES)

    def learn(self, u: Tensor, losses: Tensor) -> None:
        """Move the mean squared loss of each interval with draws towards their losses, by RATE per draw.

        A loss that is not finite counts as 0: the training has diverged, and goes on only to its next check.
        """
        stretch = (u * self.STRETCHES).long().clamp(max=self.STRETCHES - 1)
        finite = losses.detach().to(self.state).nan_to_num(0.0, 0.0, 0.0)
        count = torch.bincount(stretch, minlength=self.STRETCHES).to(self.state)
        sums = torch.zeros_like(count).index_add_(0, stretch, finite.square())
        squares, seen = self.state
        keep = torch.where(seen < self.ENOUGH, seen / (seen + count).clamp(min=1), (1 - self.RATE) ** count)
        squares.copy_(torch.where(count > 0, keep * squares + (1 - keep) * sums / count.clamp(min=1), squares))
        seen += count


DRAWS: dict[str, type[Independent]] = {
    "independent": Independent,
    "stratified": Stratified,
    "adaptive": Adaptive,
}
