"""The reader of study files: limits, one meaning in both dialects of YAML, and one short line for whatever is wrong."""

import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML

from pipeline.common.errors import StudyError
from pipeline.common.text import LONGEST_LINE
from pipeline.params.presets import preset_text
from pipeline.params.reading import DEEPEST, MOST_BYTES, parse, text_of
from pipeline.params.resolve import resolve
from pipeline.params.study import parse_study
from tests.params.minimal import error

HERE = Path("params.yaml")
STUDY = """# A study with every section.
title: "Größe β"
study: {name: t, root: ., params: params.yaml}
preset: small
presets:
  small: {data: {limit: 200}, features: {epochs: 1}, defaults: {models: {batch: 64}, curves: {nfe: [4]}}}
  large: {needs: {gpu_gib: 12.5}}
data: {source: digits, limit: 300}
features: {extractor: classifier, learning_rate: 1.0e-3}
defaults: {models: {images: 512}, curves: {samples: 40}}
models:
  edm: {}
  snr: &snr {base: edm, weighting: snr, sigma_data: null, train_seeds: [0, 1]}
  wide: {network: ddpmpp, channels: 32, multipliers: [1, 2], attention: [4], P_mean: -0.7, P_std: 0.85}
  flow: {parametrization: flow, noise: flow_uniform}
  again: *snr
curves:
  edm: {model: edm, nfe: [4, 7], S_max: .inf, method: EDM (Heun)}
  rho_3: {base: edm, model: snr, rho: 3, solver: dpmpp_2m}
  flow: {model: flow, discretization: flow, schedule: flow, sigma_max: 80}
sets: {theirs: {source: x.zip, nfe: 35}}
published:
  - {curve: edm, nfe: 35, value: 1.97, what: "EDM", source: "A 2022", images: 7}
"""
TOKENS = r"""
1e3 010 0o10 1_000 on no 1:30 2001-01-01 << ~ null true .inf .nan -1 0 1.0e-320 1.0e-16 1.0e+16 1.0e+200 1.0e+308
1000000000 99999999999999999999 [1] [[1]] {a:1} {} [] !!int !!bool !!python/name:os.system &a *a *snr
"\0" "\ud800" "\ue000" "\e[31m" " ' # - ? : , { } [ ] | > % @ `
ve vp ddpm iddpm optimised explicit reflow flops euler_maruyama rk45 guidance snapshots base nfe sigma_max blocks
""".split()  # noqa: SIM905
TOKENS += ["!!int ''", "!!bool maybe", "{a: 1}", *"\ufeff\u202e\u2028\ue000\0\x1b\x85\t"]
TOKENS += ["9" * 5000, "x" * 5000, "[" * 50, "{a: " * 50, "\n", "\n  ", "a: &b [*b]", ""]


def mutated(seed: int) -> str:
    """The study with a few tokens replaced, inserted, doubled or cut out."""
    draw, parts = random.Random(seed), re.findall(r"\w+|\s+|.", STUDY)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(parts))
        parts[at : at + draw.choice([0, 1, 1, 1, 3])] = [draw.choice([*TOKENS, draw.choice(parts)])]
    return "".join(parts)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the search for choices that change nothing, which samples with every row."""
    monkeypatch.setattr("pipeline.params.resolve._warnings", lambda *of, **more: ())


def test_a_mutated_study_is_read_as_dvc_reads_it_or_refused_in_one_line(quick: None) -> None:
    accepted = 0
    for seed in range(300):
        text = mutated(seed)
        try:
            content = parse(text, HERE)
            assert repr(YAML(typ="safe").load(text)) == repr(content) == repr(yaml.load(text, yaml.CSafeLoader)), seed
            if seed % 4 == 0:
                resolve(parse_study(text, HERE))
            accepted += 1
        except StudyError as refused:
            line = str(refused)
            assert line.isprintable() and 0 < len(line) <= LONGEST_LINE, seed
    assert accepted > 20


def test_the_study_itself_is_accepted_and_its_aliases_are_read(quick: None) -> None:
    rows = resolve(parse_study(STUDY, HERE)).models
    assert rows["again"].row == rows["snr"].row and rows["again"].base == "edm"


def nested(levels: int) -> str:
    return "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels)
    )


LIMITED = {
    "an integer of 5,000 digits": ("a: " + "9" * 5000, "line 1: a: 5000 characters; the most is 4096"),
    "an integer of 50 digits": ("a: " + "9" * 50, "line 1: a: a number of 50 characters; the most is 40"),
    "a long text": ("a: " + "x " * 100_000, "line 1: a: 199999 characters; the most is 4096"),
    "a long key": ("k" * 900 + ": [1e3]", "line 1: " + "k" * 80 + "....0: 1e3 is text in YAML 1.1"),
    "a large file": ("a: " + "x" * MOST_BYTES, "larger than 256 KiB"),
    "many values": ("a: [" + "x," * 120_000 + "]", "line 1: not valid YAML here: more than 100000 values"),
    "deep lists": ("[" * 100_000, f"line 1: not valid YAML here: more than {DEEPEST} lists"),
    "nested aliases": (nested(9), "line 5: not valid YAML here: more than 100000 values, with aliases written out"),
    "many nested aliases": (nested(2000), "not valid YAML here: more than 100000 values, with aliases"),
    "an alias in itself": ("a: &a [1, *a]", "line 1: a.1: an alias of a value that it is a part of"),
    "a tag": ("a: !!int ''", "line 1: not valid YAML here: the tag !!int; write values without tags"),
    "a tag of one's own": ("a: !x {b: 1}", "the tag !x"),
    "a merge": ("a: &a {b: 1}\nc: {<<: *a}", "line 2: c.<<: YAML 1.2 has no merges; write the keys out"),
    "a key in two dialects": ("curves: {\n on: 1}", 'line 2: curves.on: on is true in YAML 1.1 and text in YAML 1.2'),
    "a colon in brackets": ("a: {b: c:d}", 'line 1: a: c:d has a colon or question mark in brackets; write "c:d"'),
    "a number in two dialects": ("a: {b: [1, 1e3]}", 'line 1: a.b.1: 1e3 is text in YAML 1.1 and 1000.0 in YAML 1.2'),
    "a null key": ("~: 1", 'line 1: ~: a key must be text; write "~" in quotes'),
    "a key that is a list": ("? [a]\n: 1", "line 1: the file: a key must be text, not a list"),
    "a key twice, once in quotes": ('a: 1\n"a": 2', "line 2: not valid YAML: the key 'a' appears twice"),
    "two documents": ("a: 1\n---\nb: 2", "line 2: not valid YAML: "),
    "a colour": ('a: "\\e[31mred"', "line 1: a: the invisible character U+001B; delete it"),
    "a mark of the report": ('a: "\\ue000"', "line 1: a: the invisible character U+E000; delete it"),
    "a line break of YAML 1.1": ("a: 1 # \u0085b: 2", "line 1: not valid YAML: the invisible character U+0085"),
    "a lone surrogate": ('a: "\\ud800"', "line 1: not valid YAML: "),
    "another encoding": ("a: Größe".encode("latin-1"), "line 1: not valid YAML: not UTF-8"),
    "UTF-16": ("a: 1".encode("utf-16"), "line 1: not valid YAML: not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIMITED)
def test_a_file_beyond_a_limit_is_refused_in_one_line_at_once(tmp_path: Path, case: str) -> None:
    text, line = LIMITED[case]
    start = time.process_time()
    assert line in error(tmp_path, text)
    assert time.process_time() - start < 2


def test_the_bytes_are_utf_8_in_every_locale_with_or_without_a_mark_and_with_any_line_ends(tmp_path: Path) -> None:
    (path := tmp_path / "params.yaml").write_bytes("\ufeffa: Größe\r\nb: 1\r\n".encode())
    assert text_of(path) == "a: Größe\nb: 1\n" and parse(text_of(path), path) == {"a": "Größe", "b": 1}


def test_a_preset_is_written_in_quotes_where_a_dialect_would_misread_it() -> None:
    text = STUDY.replace("  large: {", '  "1e3": {').replace("preset: small", 'preset: "1e3"')
    content: dict[str, Any] = parse(preset_text(text, "t", "1e3"), HERE)
    assert content["preset"] == "1e3" and content["study"]["name"] == "t_1e3"
