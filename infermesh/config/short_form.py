"""The short form of a declaration, made long: models and stages that say themselves who serves them.

A stage may name what a provider serves (``model: openai/gpt-4.1-mini``), and a model may have the keys of a deployment
itself, with one ``api_base`` or a list of them. Both become entries in ``deployments`` and ``models`` before anything
is validated, so that all else knows the long form alone.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from infermesh.config.references import FromEnvironment
from infermesh.config.schema import STAGE_KINDS, DeploymentEntry, ModelStageConfig
from infermesh.errors import ConfigError
from infermesh.redaction import shown_url

__all__ = ["DEPLOYMENT_KEYS", "LongForm", "long_form"]

DEPLOYMENT_KEYS = frozenset(DeploymentEntry.model_fields)
"""What a model may say itself of the deployments that serve it. ``api_base`` may be a list there."""

_SECTIONS = ("limits", "deployments", "models", "stages")
_SERVED = re.compile(r"[^/\s]+/\S.*")  # provider/name
_ASKS_A_MODEL = {name for name, kind in STAGE_KINDS.items() if issubclass(kind, ModelStageConfig)}


@dataclass(frozen=True, slots=True)
class LongForm:
    """A declaration in the long form.

    Attributes
    ----------
    mapping
        The composed config. Where it had nothing in the short form, the same object that was given.
    origins
        What was added (``deployments.LABEL``) → the key that was written (``models.NAME``).
    """

    mapping: Mapping[str, Any]
    origins: Mapping[str, str]

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Inside, the message of a ``ConfigError`` names the keys that were written."""
        try:
            yield
        except ConfigError as error:
            if not self.origins:
                raise
            raise ConfigError(self.as_written(str(error))) from None

    def as_written(self, message: str) -> str:
        """A message whose lines name the keys that were written, each line once."""
        return "\n".join(dict.fromkeys(self._line(line) for line in message.split("\n")))

    def _line(self, line: str) -> str:
        line = re.sub(r"deployments\.\{([^{}]*)\}", self._replicas, line)
        for added in sorted(self.origins, key=len, reverse=True):
            written, (section, label) = self.origins[added], added.split(".", 1)
            path = rf"(?<![\w./-]){re.escape(added)}(?P<key>(?:\.\w+)*)(?=[.:\s)]|$)"
            if section == "deployments":
                line = line.replace(f"deployment {label!r}:", f"{added}:")
            if not written.startswith("stages."):
                line = re.sub(path, lambda found, to=written: f"{to}{found['key']}", line)  # type: ignore[misc]
            elif (found := re.search(path, line)) is not None:
                line = self._of_stage(line, found, label, written)
        return line

    def _of_stage(self, line: str, found: re.Match[str], label: str, written: str) -> str:
        """A stage has one key for all that was made of it. What is to be set needs a model with a name."""
        at_start = found.start() == 0
        named = written if at_start else f"models.NAME{found['key']}"
        line = f"{line[: found.start()]}{named}{line[found.end() :]}"
        if at_start and "api_base" not in line:
            return line
        line = line.removesuffix(".")
        return f"{line}. NAME stands in models: NAME: {{model: {label}, …}}, and the stage says model: NAME"

    def _replicas(self, found: re.Match[str]) -> str:
        """Several deployments that stand in one key, if one model says them all."""
        written = {self.origins.get(f"deployments.{label}") for label in found[1].split(",")}
        name = written.pop()
        return found[0] if written or name is None else name


def long_form(mapping: Mapping[str, Any], environ: Mapping[str, str]) -> LongForm:
    """Make the long form of a composed config, which is not changed.

    A model ``m`` with one server gets a deployment ``m``. One with a list gets a deployment for each, called by the
    server's host and port, or ``m-0``, ``m-1`` … where those are not known or not different; the limits that it says
    are an account which all of them share. What a stage names directly is called as it is written there.

    Parameters
    ----------
    environ
        Where variables are looked up if one decides whether a stage's ``model`` is the name of one.

    Raises
    ------
    ConfigError
        A line for each model that says itself who serves it and names deployments too, that has no ``model`` or an
        empty list, or whose name for a deployment is taken.

    Examples
    --------
    >>> short = {"models": {"m": {"model": "openai/gpt-4.1-mini"}}, "stages": {}}
    >>> long_form(short, {}).mapping["deployments"]
    {'m': {'model': 'openai/gpt-4.1-mini'}}
    """
    if not all(isinstance(mapping.get(name), Mapping | None) for name in _SECTIONS):
        return LongForm(mapping, {})  # the validation tells
    work = _Work(mapping, environ)
    problems = [*work.models_made_long(), *work.stages_made_long()]
    if problems:
        raise ConfigError("\n".join(problems))
    if not work.origins:
        return LongForm(mapping, {})
    return LongForm({**mapping, **{name: made for name, made in work.sections.items() if made}}, work.origins)


class _Work:
    """The sections, as far as they are made long."""

    def __init__(self, mapping: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self.sections: dict[str, dict[str, Any]] = {name: dict(mapping.get(name) or {}) for name in _SECTIONS}
        self.origins: dict[str, str] = {}
        self._environ = environ

    def models_made_long(self) -> Iterator[str]:
        for name, entry in self.sections["models"].items():
            if isinstance(entry, Mapping) and (own := {key: entry[key] for key in entry if key in DEPLOYMENT_KEYS}):
                rest = {key: value for key, value in entry.items() if key not in own}
                yield from self._model(name, own, rest)

    def _model(self, name: str, own: dict[str, Any], rest: dict[str, Any]) -> Iterator[str]:
        named = rest.pop("deployments", None)
        if named:
            key = "model" if "model" in own else next(iter(own))
            first = named[0] if isinstance(named, list) else "NAME"
            yield (
                f"models.{name}.{key}: models.{name} names its deployments, so this belongs to them: write "
                f"deployments.{first}.{key}, or take models.{name}.deployments out"
            )
        elif "model" not in own:
            yield f"models.{name}.model: missing; {next(iter(own))} needs it beside it: provider/name"
        elif (wrong := _wrong_list(own.get("api_base"))) is not None:
            yield f"models.{name}.api_base: {wrong}"
        else:
            made = self._served(name, own)
            for label in made:
                if label in self.sections["deployments"]:
                    yield self._taken(label, f"models.{name}")
            self.sections["deployments"] |= made
            self.sections["models"][name] = {"deployments": list(made), **rest}

    def _served(self, name: str, own: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The deployments that a model says itself, by label."""
        bases = own.get("api_base")
        written = f"models.{name}"
        if not isinstance(bases, list):
            self.origins[f"deployments.{name}"] = written
            return {name: own}
        labels = _labels(name, bases, self.sections["deployments"])
        for index, label in enumerate(labels):
            self.origins[f"deployments.{label}"] = written
            self.origins[f"deployments.{label}.api_base"] = f"{written}.api_base.{index}"
        if isinstance(own.get("limits"), Mapping) and len(labels) > 1:
            account = name if name not in self.sections["limits"] else f"{name} (all)"
            self.sections["limits"][account] = own["limits"]
            self.origins[f"limits.{account}"] = f"{written}.limits"
            own = {**own, "limits": account}
        return {label: {**own, "api_base": base} for label, base in zip(labels, bases, strict=True)}

    def _taken(self, label: str, written: str) -> str:
        entry = self.sections["deployments"][label]
        if isinstance(entry, Mapping) and "model" not in entry and written.startswith("models."):
            key = next(iter(entry), "KEY")
            return f"deployments.{label}.{key}: {written} says itself who serves it: write {written}.{key}"
        return f"deployments.{label}: {written} says itself who serves it, and this has its name: rename one of the two"

    def stages_made_long(self) -> Iterator[str]:
        for name, stage in self.sections["stages"].items():
            if (
                isinstance(stage, Mapping)
                and stage.get("kind") in _ASKS_A_MODEL
                and isinstance(stage.get("model"), str)
            ):
                yield from self._stage(name, stage)

    def _stage(self, name: str, stage: Mapping[str, Any]) -> Iterator[str]:
        text = stage["model"]
        backend = _resolved(text, self._environ)
        written = f"stages.{name}.model"
        if not _SERVED.fullmatch(backend) or backend in self.sections["models"]:
            return
        # A variable's value may be another one tomorrow, and is stored nowhere: then the stage gives the name.
        label = text if text == backend else name
        if label in self.sections["deployments"]:
            yield self._taken(label, written)
            return
        if label in self.sections["models"]:
            yield f"{written}: models.{label} has the name of this stage: rename one of the two"
            return
        if (other := self._serving(backend)) is not None:
            yield f"{written}: models.{other} is '{backend}': write model: {other}, so that what it says holds here too"
            return
        self.sections["deployments"][label] = {"model": text}
        self.sections["models"][label] = {"deployments": [label]}
        self.sections["stages"][name] = {**stage, "model": label}
        self.origins |= {f"deployments.{label}": written, f"models.{label}": written}

    def _serving(self, backend: str) -> str | None:
        """The model that a deployment with this backend serves already, so that a limit may be meant for both."""
        for name, model in self.sections["models"].items():
            labels = model.get("deployments") if isinstance(model, Mapping) else None
            for label in labels if isinstance(labels, list) else []:
                entry = self.sections["deployments"].get(label) if isinstance(label, str) else None
                if isinstance(entry, Mapping) and entry.get("model") == backend:
                    return str(name)
        return None


def _resolved(text: str, environ: Mapping[str, str]) -> str:
    """A stage's ``model`` with the values of its variables; nothing where one is not set, which is told elsewhere."""
    try:
        return str(FromEnvironment(text).value(environ))
    except ConfigError:
        return ""


def _wrong_list(bases: Any) -> str | None:
    if bases == []:
        return "the list is empty: give at least one URL"
    if isinstance(bases, str) and (urls := re.split(r"[,;\s]+(?=https?://)", bases.strip()))[1:]:
        return f"several URLs are a list: [{', '.join(str(shown_url(url)) for url in urls)}]"
    twice = [each for each in bases if each != "simulator" and bases.count(each) > 1] if isinstance(bases, list) else []
    return f"{shown_url(str(twice[0]))} stands there twice" if twice else None


def _labels(name: str, bases: list[Any], taken: Mapping[str, Any]) -> list[str]:
    """A name for each server of a list: its host and port, else the model's name and a number."""
    if len(bases) == 1:
        return [name]
    hosts = [_host(base) for base in bases]
    return [
        host if host is not None and hosts.count(host) == 1 and host not in taken else f"{name}-{index}"
        for index, host in enumerate(hosts)
    ]


def _host(base: Any) -> str | None:
    if not isinstance(base, str) or "${" in base:
        return None
    try:
        return urlsplit(base).netloc.rpartition("@")[2] or None
    except ValueError:
        return None
