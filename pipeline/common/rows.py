"""What all rows of the study file share."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

NAME = r"^[A-Za-z0-9_]{1,60}$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=r"^[^\n]*$")]  # as figures print it


class Row(BaseModel):
    """A validated, frozen mapping; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        if cls.model_fields[info.field_name or ""].annotation is bool:
            return value
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, bool):  # YAML reads yes, no, on, off as truth values, and they would pass for 1 and 0
                raise ValueError(f"a truth value ({each}) stands for nothing here")
        return value


def axis(default: Any, title: str) -> Any:
    """A field that is a design choice: a row that differs from its base in such fields alone is filed under `title`."""
    return Field(default, title=title)


def _unique(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed stands twice in {list(seeds)}")
    return seeds


Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1), AfterValidator(_unique)]
