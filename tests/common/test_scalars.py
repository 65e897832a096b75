"""Plain scalars: a text that PyYAML and DVC read differently is ambiguous, and any other is read as they read it."""

import pytest
import yaml
from ruamel.yaml import YAML

from pipeline.common.scalars import ambiguity, dump, in_a_line, is_text, spellings, value_of

DIFFERENT = """
1e3 1.0e3 1E5 12e03 .5e3 1e+400 +.5 -.5 010 0o10 -0o7 09 1_000 1__0 0.1_0 0x_1 0b11 +_ ._ 0x_ 1:30 190:20:30 1:30.5
on On ON off yes Yes no NO << = 2001-01-02 2001-13-45 2001-12-14T21:59:43Z
""".split()  # noqa: SIM905
EQUAL = """
0 -0 +1 12 00 0x1F -0x1 0.5 .5 1. 1.0e+3 1.5E-7 .inf -.inf +.Inf .nan ~ null Null NULL true True FALSE y n Y x edm
_1 1x 1,000 1.2.3 0o8 0b2 e3 inf nan + . .. .e3 1e 0x a_1 1/2 12-3 1-2-3
""".split()  # noqa: SIM905


def both(text: str) -> list[str]:
    """The value of a plain scalar in PyYAML and in DVC's reader, with its type; an error by its name."""
    readings = []
    for load in (yaml.CSafeLoader, YAML(typ="safe")):
        try:
            value = (yaml.load(f"a: {text}", load) if isinstance(load, type) else load.load(f"a: {text}"))["a"]
            readings.append(f"{type(value).__name__} {value!r}")
        except Exception as error:  # ruamel.yaml and PyYAML raise errors of many classes
            readings.append(type(error).__name__)
    return readings


@pytest.mark.parametrize("text", DIFFERENT)
def test_a_scalar_with_two_readings_is_named_with_what_to_write(text: str) -> None:
    assert " in YAML 1.1 and " in (ambiguity(text) or "") and not is_text(text)
    for spelling in spellings(text):
        old, new = both(spelling)
        assert old == new and "Error" not in old


def test_the_libraries_disagree_as_we_say() -> None:
    apart = {text for text in DIFFERENT if len(set(both(text))) == 2}
    agreed = {"1_000", "1__0", "0.1_0", "0x_1", "0b11"}  # the libraries agree, YAML 1.2 differs
    odd = {".5e3", "1:30.5", "+_", "._", "0x_", "<<", "=", "2001-01-02", "2001-13-45", "2001-12-14T21:59:43Z"}
    assert apart >= set(DIFFERENT) - agreed - odd


@pytest.mark.parametrize("text", EQUAL)
def test_any_other_scalar_is_read_as_both_libraries_do(text: str) -> None:
    assert ambiguity(text) is None
    value = value_of(text)
    assert both(text) == [f"{type(value).__name__} {value!r}"] * 2


def test_what_we_write_is_read_alike() -> None:
    content = {text: text for text in DIFFERENT + EQUAL} | {"x": [1e-5, 1e300, 3, True, None, "a: b", "#", ""]}
    for text in (dump(content, sort_keys=False), in_a_line(content)):
        assert yaml.safe_load(text) == YAML(typ="safe").load(text) == content
