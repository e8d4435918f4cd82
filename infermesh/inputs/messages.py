"""``messages`` of a stage: a list with templates in its texts, as it stands in YAML, in a file, or as an expression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from infermesh.config.file_names import names_template
from infermesh.errors import ConfigError
from infermesh.exact_json import dumps
from infermesh.inputs.paths import find, similar_file
from infermesh.inputs.templates import Template

_LISTS = (".yaml", ".yml", ".json")
Evaluate = Callable[[Mapping[str, Any]], Any]


class MessageList:
    """Messages whose texts are templates. Each text is rendered as a prompt is, and the rest stays as it is.

    Attributes
    ----------
    templates
        Those of the texts, in their order.
    source
        The list as JSON.

    Raises
    ------
    ConfigError
        A text is no template.

    Examples
    --------
    >>> MessageList([{"role": "user", "content": "Say {{ x }}"}], "stages.a.messages").evaluate({"x": "yes"})
    [{'role': 'user', 'content': 'Say yes'}]
    """

    def __init__(self, messages: Sequence[Any], path: str) -> None:
        self.path = path
        self.source = dumps(messages, str).decode()
        self.templates: list[Template] = []
        self.evaluate: Evaluate = self._filled(messages, path)

    def _filled(self, node: Any, path: str) -> Evaluate:
        """A function of a row's context that gives the node with its texts rendered."""
        if isinstance(node, str):
            template = Template(node, path)
            self.templates.append(template)
            return (lambda context: template.start) if template.is_text else template.render
        if isinstance(node, Mapping):
            fields = [(name, self._filled(value, f"{path}.{name}")) for name, value in node.items()]
            return lambda context: {name: filled(context) for name, filled in fields}
        if isinstance(node, list):
            items = [self._filled(value, f"{path}[{number}]") for number, value in enumerate(node)]
            return lambda context: [filled(context) for filled in items]
        return lambda context: node


class Expression:
    """Messages that an expression gives. It has the same attributes as :class:`MessageList`."""

    def __init__(self, source: str, path: str) -> None:
        template = Template(source, path, expression=True)
        self.path, self.source, self.templates = path, template.source, [template]
        self.evaluate: Evaluate = template.evaluate


def load_messages(value: str | Sequence[Any], path: str, roots: Sequence[Path]) -> MessageList | Expression:
    """The messages of a stage, from what its key says.

    Parameters
    ----------
    value
        The list; or the name of a file that holds it as YAML or JSON; or an expression, or the name of its file.
    path
        Where it stands in the config, for messages.
    roots
        The folders that the file is looked up in.

    Raises
    ------
    ConfigError
        There is no such file, or there are no messages in it.
    """
    if not isinstance(value, str):
        return MessageList(value, path)
    listed = value.endswith(_LISTS) and not set("{[\n") & set(value)
    if not listed and not names_template(value):
        return Expression(value, path)
    file = find(value, roots)
    if file is None or not file.is_file():
        raise ConfigError(f"{path}: no file '{value}'.{similar_file(value, roots)}")
    where = f"{path} ({value})"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {value} is not UTF-8 text: {error}") from None
    found = _listed(text, where) if listed else None
    try:
        return Expression(text, where) if found is None else MessageList(found, where)
    except ConfigError as error:
        if listed:
            raise
        raise ConfigError(
            f'{error} In such a file stands one expression: [{{"role": "user", "content": text}}]. Messages '
            "with {{ }} in their texts go into a .yaml file."
        ) from None


def _listed(text: str, where: str) -> list[Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: neither YAML nor JSON: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(found, list) or not found or not all(isinstance(item, dict) and "role" in item for item in found):
        raise ConfigError(f"{where}: expected a list of messages, each with a role and a content")
    return found
