"""A rule as a labeler: any Python function of examples."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from sail.core.artifacts import Artifact, Leaf, leaf
from sail.core.errors import UserError
from sail.core.records import Example
from sail.core.run_settings import CallableLabeler
from sail.core.store import Workspace
from sail.labeling.labeler_row import Labeler, Scorer

_imported: dict[ModuleType, Leaf] = {}  # a file that is edited during a run is not what the run's modules were made of


def callable_labeler(name: str, settings: CallableLabeler, fitted: Artifact | None = None) -> Labeler:
    """The labeler behind 'module:function', f(examples) -> one finite float each, higher is better.

    Its digest is the SHA-256 of the module's source file as this process imported it; what that file imports is not
    looked at. The module is found on Python's path or in the working folder. UserError where module, file or function
    do not exist.
    """
    where = f"labelers.{name}.path"
    module_name, function_name = _parts(settings.path, where)
    source = leaf(_source_file(module_name, settings.path, where), where)
    module = importlib.import_module(module_name)
    source = _imported.setdefault(module, source)
    function = _function(module, function_name, settings.path, where)

    def open_function(workspace: Workspace) -> Scorer:
        def score(examples: Sequence[Example]) -> list[float]:
            return checked_scores(function(list(examples)), len(examples), settings.path, where)

        return score

    return Labeler(name, source, {"kind": "callable", "function": function_name}, open_function)


def _parts(path: str, where: str) -> tuple[str, str]:
    module_name, colon, function_name = path.partition(":")
    if not (module_name and colon and function_name):
        raise UserError(f"{path!r} is not of the form module:function", where=where, cure="Write package.module:name")
    return module_name, function_name


def _source_file(module_name: str, path: str, where: str) -> Path:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a console script, unlike `python -m`, does not look beside the config
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(module_name)
    except (ModuleNotFoundError, ValueError):  # a parent package is missing, or is no package
        spec = None
    if spec is None:
        raise UserError(
            f"no module {module_name!r} for {path!r}", where=where,
            cure="Check the spelling, install it, or run where its file lies",
        )  # fmt: skip
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise UserError(f"{module_name!r} has no source file, so {path!r} cannot be named by its content", where=where,
                        cure="Name a function of a .py module")  # fmt: skip
    return Path(spec.origin)


def _function(module: ModuleType, function_name: str, path: str, where: str) -> Callable[[list[Example]], Any]:
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(
            f"module {module.__name__!r} has no function {function_name!r} (from {path!r})", where=where,
            cure=f"Define def {function_name}(examples) -> list[float] there, or correct the name",
        )  # fmt: skip
    return function


def checked_scores(scores: Any, count: int, path: str, where: str) -> list[float]:
    """The scores as floats; UserError unless they are `count` finite numbers."""
    if not isinstance(scores, Iterable):
        problem = f"returned {type(scores).__name__} instead of a list of floats"
        raise UserError(f"{path!r} {problem}", where=where, cure="Return one float per example")
    values = list(scores)
    if len(values) != count:
        problem = f"returned {len(values)} scores for {count} examples"
        raise UserError(f"{path!r} {problem}", where=where, cure="Return one float per example, in their order")
    wrong = [value for value in values if not (isinstance(value, Real) and math.isfinite(value))]
    if wrong:
        raise UserError(f"{path!r} returned {wrong[0]!r} among its scores", where=where,
                        cure="Return finite floats; give unusable responses a low score")  # fmt: skip
    return [float(value) for value in values]
