"""Make the flags of a one-shot command a declaration of one stage, which is then validated like any other."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from infermesh.cli.common import fail
from infermesh.cli.oneshot.options import (
    KEY_REASON,
    AudioOption,
    GenerateOptions,
    InputOptions,
    LimitOptions,
    ModelOptions,
    PromptOption,
    TextOption,
    WindowOption,
)
from infermesh.config.file_names import names_template
from infermesh.hints import nearest
from infermesh.redaction import looks_secret
from infermesh.types import LIMITS

_SAMPLING = ("temperature", "top_p", "max_tokens", "seed")
_WITH_FLAG = (*_SAMPLING, "dimensions", "language")
_OTHER_FLAGS = (*(each.name for group in (LimitOptions, WindowOption) for each in dataclasses.fields(group)), "system")
_MODEL = "model"
_ACCOUNT = "account"
# Keys of the declaration that have a flag of the same name.
_KEYS = frozenset(
    each.name
    for group in (
        PromptOption,
        TextOption,
        AudioOption,
        InputOptions,
        ModelOptions,
        GenerateOptions,
        LimitOptions,
        WindowOption,
    )
    for each in dataclasses.fields(group)
)
_STAGE = r"stages\.(?:generate|embed|transcribe)"
_KEY = re.compile(rf"\b(?:limits\.{_ACCOUNT}|models\.(?:{_MODEL}|\*)|{_STAGE}|guards)\.(\w+)")
_PARAM = re.compile(rf"\b(?:models\.{_MODEL}|{_STAGE})\.params\.(\w+)|(?<=^stages\.generate: )params\.(\w+)", re.M)
# Other words of a declaration, and those of a command.
_WORDS = {
    rf"^{_STAGE}: ": "",
    r"^source: ": "--input-jsonl: ",
    r"\bsource\.path\b": "--input-jsonl",
    r"\bsource\.encoding\b": "--input-encoding",
    r"\bSet source\.format to \w+, or rename it\b": "Rename it",
    r"\ballow_paths?\b": "--allow-path",
    r"\bneither a column of the source nor a stage\b": "no column of the input",
    r"(?<=\bcolumn of )the source\b|\bthe source(?= (?:has|holds) )": "the input",
    r"\bRename the stage\b": "Rename the column",
    r"\bwrite it as the stage's own key, ": "write ",
    r"\binfermesh resume\b": "the same command with --resume",
}
# Where no file of deployments is given, the labels are ours.
_DEPLOYMENT = {
    r"\bdeployments\.(\S+?)\.(model|api_base)\b": lambda found: f"--{found[2].replace('_', '-')}",
    r"^deployments\.(\S+): ": lambda found: f"{found[1]}: ",
    r"\bthe deployment's api_key_env\b": lambda found: "api_key_env in a file for --deployments-toml",
}


def flags_mapping(
    kind: str,
    source: Mapping[str, Any],
    model: ModelOptions,
    limits: LimitOptions,
    *,
    request: GenerateOptions | None = None,
    flags: Mapping[str, Any] | None = None,
    param: Sequence[str] = (),
    stage: Mapping[str, Any] | None = None,
    window: WindowOption | None = None,
    keep_errors: bool = False,
    allow_paths: Sequence[str] = (),
) -> dict[str, Any]:
    """The declaration that the flags mean.

    Parameters
    ----------
    kind
        ``generate``, ``embed`` or ``transcribe``. It is the stage's name as well.
    flags
        Request parameters from flags of their own, besides those of ``request``, by their names on the wire.
    param
        Further ones, as ``NAME=VALUE``.
    stage
        Keys of the stage: where its input comes from. A value of ``None`` counts as not given.
    window
        How much is sent at once, and when to give up; ``None`` for ``bench``, which decides that itself.
    """
    if model.model is None:
        fail("--model is missing: provider/model, such as openai/gpt-4.1-mini or hosted_vllm/NAME", code=2)
    account = without_none({name: getattr(limits, name, None) for name in LIMITS})
    deployments, accounts = _deployments(model, shared=bool(account))
    request, window = request or GenerateOptions(), window or WindowOption()
    entry = {
        "deployments": list(deployments),
        "routing_strategy": model.routing_strategy,
        "endpoint": request.endpoint,
        "params": _params({**{name: getattr(request, name) for name in _SAMPLING}, **(flags or {})}, param),
        "max_retries": limits.max_retries,
        "timeout": limits.timeout,
        "max_wait_unreachable": window.max_wait_unreachable,
    }
    own = {
        "system": None if request.system is None else literal(request.system),
        "response_format": request.response_format,
        "parse_json": True if request.parse_json else None,
        "max_parallel_requests": window.max_parallel_requests,
    }
    return {
        "name": kind,
        "source": dict(source),
        "limits": accounts | ({_ACCOUNT: account} if account else {}),
        "deployments": deployments,
        "models": {_MODEL: without_none(entry)},
        "stages": {kind: {"kind": kind, "model": _MODEL, **without_none(own), **without_none(stage or {})}},
        "guards": {} if window.first_errors is None else {"first_errors": window.first_errors or None},
        "keep_errors": keep_errors,
        "allow_paths": list(allow_paths),
    }


def is_template(text: str) -> bool:
    """Whether a flag's text is a template over a row's columns, or the name of a template's file."""
    return "{{" in text or "{%" in text or names_template(text)


def literal(text: str) -> str:
    """A template that gives exactly this text, braces included. A file's name is left as it is."""
    text = text.replace("${oc.", "\\${oc.")  # which would name a variable in a declaration
    return text if "{" not in text or names_template(text) else f"{{% raw %}}{text}{{% endraw %}}"


def as_flags(message: str, *, toml: bool = False) -> str:
    """A message that names flags where it named keys of the declaration, which a command's user has not seen.

    Parameters
    ----------
    toml
        Whether the deployments are those of a file, whose keys the user knows.
    """
    message = _PARAM.sub(lambda found: _param_flag(found[1] or found[2]), message)
    message = _KEY.sub(lambda found: _flag(found[1]) if found[1] in _KEYS else found[0], message)
    for pattern, words in _WORDS.items():
        message = re.sub(pattern, words, message, flags=re.M)
    for pattern, replaced in () if toml else _DEPLOYMENT.items():
        message = re.sub(pattern, replaced, message, flags=re.M)
    return message


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _param_flag(name: str) -> str:
    return _flag(name) if name in _WITH_FLAG else f"--param {name}"


def _params(flags: Mapping[str, Any], further: Sequence[str]) -> dict[str, Any]:
    """The request's parameters: those of flags, and ``NAME=VALUE`` pairs with values as YAML has them."""
    found = without_none(flags)
    for pair in further:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            fail(f"--param {pair}: expected NAME=VALUE, such as --param presence_penalty=0.5", code=2)
        if name in _OTHER_FLAGS:
            fail(f"--param {name}: this is no parameter of a request: use --{name.replace('_', '-')}", code=2)
        if name in found:
            own = "transcript_format" if name == "response_format" else name
            twice = (
                f"--{own.replace('_', '-')} gives it already" if flags.get(name) is not None else "it is given twice"
            )
            fail(f"--param {name}: {twice}", code=2)
        found[name] = _yaml_value(name, text)
    return found


def _yaml_value(name: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        quotes = f"'{name}=\"…\"'"
        fail(f"--param {name}: {text!r:.100} is no YAML value: text with odd characters is quoted, {quotes}", code=2)
    if isinstance(value, str) and value == text.strip():
        with contextlib.suppress(ValueError):
            return float(value)  # YAML 1.1 reads 1e-3 as text, and the files of an experiment as a number
    return text if isinstance(value, dt.date | bytes | set) else value  # JSON has none of these


def refuse_secrets(*groups: Any) -> None:
    """End the command if a flag's value looks like a key. The message does not repeat the value."""
    for group in groups:
        if group is None:
            continue
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and looks_secret(text):
                    name = field.name.replace("_", "-")
                    fail(f"--{name}: the value holds what looks like a key or password: {KEY_REASON}", code=2)


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _deployments(model: ModelOptions, *, shared: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The deployments by label, and the accounts that the file declares."""
    if model.deployments_toml is not None:
        if model.api_base:
            fail("give either --api-base or --deployments-toml: each deployment in the file has its own api_base", 2)
        return _from_toml(model.deployments_toml, shared=shared)
    found: dict[str, Any] = {}
    bases: list[str | None] = [*model.api_base] if model.api_base else [None]
    for base in bases:
        label = (base and urlsplit(base).netloc) or base or "default"
        if label in found:
            label = f"{label}-{len(found)}"
        found[label] = without_none({"model": model.model, "api_base": base, "limits": _ACCOUNT if shared else None})
    return found, {}


def _from_toml(path: Path, *, shared: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"--deployments-toml: {path} cannot be read: {error.strerror}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fail(f"--deployments-toml: {path} is not TOML: {error}")
    for key in content:
        if key not in ("deployments", "limits"):
            fail(f"{path}: {key}: unknown key.{nearest(key, ['deployments', 'limits'])}")
    deployments = content.get("deployments")
    if not isinstance(deployments, dict) or not deployments:
        fail(f"{path}: expected a table for each deployment: [deployments.gpu-0] with model and api_base")
    return {label: _toml_deployment(path, label, entry, shared=shared) for label, entry in deployments.items()}, dict(
        content.get("limits", {})
    )


def _toml_deployment(path: Path, label: str, entry: Any, *, shared: bool) -> Any:
    """One deployment. Its limits may stand beside its other keys, as in Python's ``DeploymentConfig``."""
    if not isinstance(entry, dict):
        fail(f"{path}: deployments.{label}: expected a table with model and api_base")
    own = {name: entry.pop(name) for name in LIMITS if name in entry}
    if own and "limits" not in entry:
        entry["limits"] = own
    elif own:
        fail(f"{path}: deployments.{label}: give {next(iter(own))} either beside 'limits' or within it")
    if shared:
        if "limits" in entry:
            fail(
                f"{path}: deployments.{label} has limits of its own: leave them out, or the command's --rpm, --tpm …", 2
            )
        entry["limits"] = _ACCOUNT
    return entry
