"""The base class and the types that all rows of the study file share."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

NAME = r"^[A-Za-z0-9_]{1,60}$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
MOST = 10**12  # the largest number that a key takes, which no study needs; most keys that need a lower one have it
MOST_STEPS = 10**7  # of a training; EDM's for CIFAR-10 has 390,625
PositiveInt = Annotated[int, Field(gt=0, le=MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]
PositiveFloat = Annotated[float, Field(gt=0, le=MOST)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=MOST)]
RealFloat = Annotated[float, Field(ge=-MOST, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=r"^[^\n]*$")]  # printed in figures


class Row(BaseModel):
    """A validated, frozen mapping; unknown keys are errors. The docstring under a field describes its key."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        if cls.model_fields[info.field_name or ""].annotation is bool:
            return value
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool):  # they would pass for 1 and 0
                raise ValueError(f"{str(item).lower()} is not valid here")
        return value


def axis(default: Any, title: str) -> Any:
    """A field that is a design choice. The report lists a row under `title` if all its differences have this title."""
    return Field(default, title=title)


def _unique(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{list(seeds)} has a seed twice; list each seed once")
    return seeds


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_unique)]
