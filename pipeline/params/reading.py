"""The one reader of study files: limited in size, depth and aliases, and the same in YAML 1.1 and YAML 1.2.

DVC reads the same file as YAML 1.2. So what the two dialects read differently is refused, tags and merges included.
"""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.common.errors import StudyError
from pipeline.common.scalars import ambiguity, is_text, spellings, value_of
from pipeline.common.text import code_point, hidden, shortened

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
STANDARD = "tag:yaml.org,2002:"
PLAIN = (None, "")  # the style of a scalar without quotes
MOST_BYTES, MOST_VALUES = 2**18, 100_000  # values: keys, texts, numbers, lists and mappings, aliases written out
DEEPEST = 20  # lists and mappings inside each other; a study needs 6
LONGEST_TEXT, LONGEST_NUMBER = 4096, 40  # characters


class _Value(NamedTuple):
    """A value, the number of values in it, and how deep they lie."""

    content: Any
    size: int
    depth: int


def text_of(path: Path) -> str:
    """The text of a study file, with Unix line ends. Raises StudyError."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise StudyError(f"{path}: no such study file") from None
    if len(content) > MOST_BYTES:
        raise StudyError(f"{path}: larger than {MOST_BYTES // 1024} KiB, so not a study file")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StudyError(f"{path}: line {line}: not valid YAML: not UTF-8; save the file as UTF-8") from None


def parse(text: str, path: Path) -> Any:
    """The content of a study file: mappings with text as keys, lists, text, numbers, booleans and None.

    path: its place in messages. Raises StudyError, one line that says where and what.
    """
    try:
        _check_text(text)
        _check_events(text)
        node = yaml.compose(text, LOADER)
        return None if node is None else _Reader().value(node, "").content
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise StudyError(f"{path}: {line}not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{path}: not valid YAML: {error}") from None
    except _Refusal as error:
        raise StudyError(f"{path}: line {error.line}: {error}") from None


class _Refusal(Exception):
    """A reason to refuse a file, with its line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def _check_text(text: str) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        if character := hidden(line):
            raise _Refusal(number, f"not valid YAML: the invisible character {code_point(character)}; delete it")


def _check_events(text: str) -> None:
    """Refuse a text whose nodes would be too many or too deep, before any is made, and tags such as !!int."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, LOADER)):
        line = event.start_mark.line + 1
        if (tag := getattr(event, "tag", None)) is not None:
            tag = shortened(tag.replace(STANDARD, "!!"))
            raise _Refusal(line, f"not valid YAML here: the tag {tag}; write values without tags")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        _check_extent(count, depth, line)


def _check_extent(size: int, depth: int, line: int) -> None:
    if size > MOST_VALUES:
        raise _Refusal(line, f"not valid YAML here: more than {MOST_VALUES} values, with aliases written out")
    if depth > DEEPEST:
        raise _Refusal(line, f"not valid YAML here: more than {DEEPEST} lists and mappings inside each other")


class _Reader:
    """Reads the nodes of one file. An alias is read once, where its anchor is."""

    def __init__(self) -> None:
        self.known: dict[int, _Value | None] = {}

    def value(self, node: yaml.Node, place: str) -> _Value:
        """The value of a node. place: its keys, for messages."""
        line = node.start_mark.line + 1
        if id(node) not in self.known:
            self.known[id(node)] = None
            self.known[id(node)] = self._read(node, place, line)
        value = self.known[id(node)]
        if value is None:
            raise _Refusal(line, f"{place}: an alias of a value that it is a part of; write the value out")
        return value

    def _read(self, node: yaml.Node, place: str, line: int) -> _Value:
        if isinstance(node, yaml.ScalarNode):
            return _Value(_scalar(node, place, line), 1, 0)
        content: dict[str, Any] | list[Any]
        self._check_marks(node, place)
        if isinstance(node, yaml.SequenceNode):
            items = [self.value(each, _join(place, str(i))) for i, each in enumerate(node.value)]
            content = [item.content for item in items]
        else:
            keys = self._keys(node, place)
            items = [self.value(each, _join(place, key)) for key, (_, each) in zip(keys, node.value, strict=True)]
            content = {key: item.content for key, item in zip(keys, items, strict=True)}
        size, depth = len(items) + sum(i.size for i in items), 1 + max((i.depth for i in items), default=0)
        _check_extent(size, depth, line)
        return _Value(content, size, depth)

    def _check_marks(self, node: yaml.CollectionNode, place: str) -> None:
        """Refuse text such as a:b and a? in brackets, which only some readers take without quotes."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        for part in parts if node.flow_style else ():
            if isinstance(part, yaml.ScalarNode) and part.style in PLAIN and set(":?") & set(part.value):
                line, text = part.start_mark.line + 1, shortened(part.value)
                raise _Refusal(
                    line, f'{place or "the file"}: {text} has a colon or question mark in brackets; write "{text}"'
                )

    def _keys(self, node: yaml.MappingNode, place: str) -> list[str]:
        keys = list[str]()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _Refusal(line, f"{place or 'the file'}: a key must be text, not a list or a mapping")
            where = _join(place, key.value)
            _check_scalar(key, where, line)
            if key.style in PLAIN and not is_text(key.value):
                if key.value == "<<":
                    raise _Refusal(line, f"{where}: YAML 1.2 has no merges; write the keys out, or name a base")
                why = ambiguity(key.value)
                is_why = f"{shortened(key.value)} is {why}; " if why else ""
                raise _Refusal(line, f'{where}: {is_why}a key must be text; write "{shortened(key.value)}" in quotes')
            keys.append(key.value)
        if len(set(keys)) < len(keys):
            twice = next(i for i, key in enumerate(keys) if key in keys[:i])
            line = node.value[twice][0].start_mark.line + 1
            raise _Refusal(
                line, f"not valid YAML: the key {shortened(keys[twice])!r} appears twice; delete one of the two"
            )
        return keys


def _join(place: str, key: str) -> str:
    return f"{place}.{shortened(key)}" if place else shortened(key)


def _check_scalar(node: yaml.ScalarNode, place: str, line: int) -> None:
    if len(node.value) > LONGEST_TEXT:
        raise _Refusal(line, f"{place}: {len(node.value)} characters; the most is {LONGEST_TEXT}")
    if character := hidden(node.value):
        raise _Refusal(line, f"{place}: the invisible character {code_point(character)}; delete it")


def _scalar(node: yaml.ScalarNode, place: str, line: int) -> Any:
    _check_scalar(node, place, line)
    text = node.value
    if node.style not in PLAIN or is_text(text):
        return text
    if len(text) > LONGEST_NUMBER:
        raise _Refusal(line, f"{place}: a number of {len(text)} characters; the most is {LONGEST_NUMBER}")
    if why := ambiguity(text):
        raise _Refusal(line, f"{place}: {text} is {why}, which DVC reads; write {' or '.join(spellings(text))}")
    return value_of(text)
