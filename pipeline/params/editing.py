"""Study files with other values: everything else in the file stays, with its comments and layout."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from pipeline.common.errors import StudyError
from pipeline.common.scalars import is_text


class _Representer(RoundTripRepresenter):
    """Writes null as `null`, where ruamel.yaml leaves the value out."""


_Representer.add_representer(type(None), lambda own, _: own.represent_scalar("tag:yaml.org,2002:null", "null"))


def edited(text: str, values: Mapping[tuple[str, ...], Any]) -> str:
    """The text of a study file with other values at some places, such as ("data", "source").

    A mapping replaces all keys of the mapping at its place. A missing `preset` is added behind `study`. Raises
    StudyError if another place is missing.
    """
    editor = YAML()
    editor.Representer = _Representer
    editor.preserve_quotes, editor.width = True, 10**6  # no line is wrapped
    editor.indent(mapping=2, sequence=4, offset=2)
    try:
        content = editor.load(text)
    except YAMLError as error:
        raise StudyError(f"not valid YAML 1.2: {error}") from None
    for place, value in values.items():
        *above, key = place
        section = content
        for name in above:
            section = section.get(name) if isinstance(section, dict) else None
        if place == ("preset",) and key not in content:
            content.insert(list(content).index("study") + 1, key, _node(value))
        elif not isinstance(section, dict) or key not in section:
            raise StudyError(f"{'.'.join(place)}: missing; add it")
        elif isinstance(value, Mapping) and isinstance(section[key], CommentedMap):
            section[key].clear()  # keeps the comment behind it
            section[key].update(_node(value))
        else:
            section[key] = _node(value)
    editor.dump(content, output := StringIO())
    return output.getvalue()


def _node(value: Any) -> Any:
    """A value as the file shows it: a mapping or list on one line, and text in quotes if it could be misread."""
    if isinstance(value, Mapping):
        node = CommentedMap({key: _node(item) for key, item in value.items()})
        node.fa.set_flow_style()
        return node
    if isinstance(value, list | tuple):
        items = CommentedSeq(map(_node, value))
        items.fa.set_flow_style()
        return items
    return DoubleQuotedScalarString(value) if isinstance(value, str) and not is_text(value) else value
