"""What a training costs: images seen and network evaluations, its own and its teacher's. All counts are of one seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.training.objectives import OBJECTIVES, Question
from pipeline.training.pairs import REFLOW_STEPS
from pipeline.training.row import Model

BACKWARD = 2  # evaluations that a gradient costs


@dataclass(frozen=True)
class Bill:
    """Images of a training, and evaluations of networks: those with a gradient (one an image) and those without."""

    images: int
    without_gradient: int

    @property
    def evaluations(self) -> int:
        return self.images + self.without_gradient

    @property
    def passes(self) -> int:
        """Evaluations, a gradient counted as BACKWARD more of them."""
        return self.evaluations + BACKWARD * self.images

    def __add__(self, other: "Bill") -> "Bill":
        return Bill(self.images + other.images, self.without_gradient + other.without_gradient)


def own_bill(row: Model) -> Bill:
    """The bill of a row's training, without its teacher's."""
    return Bill(row.seen_images, row.seen_images * asked(row) + for_pairs(row))


def teacher_bill(row: Model) -> Bill:
    """The bill of everything that had to be trained before a row; nothing for a row without a teacher."""
    return own_bill(row.teacher) + teacher_bill(row.teacher) if row.teacher else Bill(0, 0)


def bills(row: Model) -> dict[str, Bill]:
    """The bills of a row's training, of its teacher's, and of both."""
    own, teacher = own_bill(row), teacher_bill(row)
    return {"own": own, "teacher": teacher, "both": own + teacher}


def for_pairs(row: Model) -> int:
    """The teacher's evaluations that make the pairs of a reflow row, once for each training; 0 for other rows."""
    return 2 * REFLOW_STEPS * row.reflow_pairs if row.pairs == "reflow" else 0


def asked(row: Model) -> int:
    """The evaluations without a gradient that the target of a row's objective takes for an image; they are counted."""
    count = 0

    def answer(z: Tensor, sigma: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return z

    x, levels = torch.zeros(1, 1), row.levels(torch.full((1,), 0.5, dtype=torch.float64))
    OBJECTIVES[row.objective].target_of(Question(x, x, levels, answer, answer), vars(row))
    return count
