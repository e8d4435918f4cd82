"""Functions and classes of the user's: importing them, and telling whether their code has changed."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from infermesh.errors import ConfigError
from infermesh.hints import nearest
from infermesh.runtime.foreign import ForeignFunction, words_of


def imported_function(spec: str, path: str, threads: int, taken: Callable[[Any], Any]) -> ForeignFunction:
    """Import ``module:name``, a user's function, sync or async. ``threads`` and ``taken`` as in ForeignFunction.

    Raises
    ------
    ConfigError
        It does not import, or is not callable.
    """
    try:
        return ForeignFunction(spec, import_object(spec, path), threads, taken)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}.") from None


def module_hash(function: Any) -> str | None:
    """Hash the module that defines a function, without comments and layout; ``None`` if it has no Python source.

    The whole module, because the function may call others in it.
    """
    module = inspect.getmodule(function)
    try:
        tree = ast.dump(ast.parse(inspect.getsource(module or function)))
    except (OSError, TypeError, SyntaxError):
        return None
    return hashlib.blake2b(tree.encode(), digest_size=8).hexdigest()


def import_object(spec: str, path: str) -> Any:
    """Import ``module:name``.

    Raises
    ------
    ConfigError
        It does not import; the message says why.
    """
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's module may raise anything on import, and may exit
        raise ConfigError(
            f"{path}: '{spec}' does not import: {words_of(error)}. Expected module:Name, with the module "
            f"importable from the working directory."
        ) from None
    if not hasattr(module, name):
        public = [item for item in vars(module) if not item.startswith("_")]
        raise ConfigError(f"{path}: module '{module_name}' has no '{name}'.{nearest(name, public)}")
    return getattr(module, name)
