"""YAML documents: reading, presets, deep merging and key=value overrides. No settings are known here."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sail.core.errors import UserError
from sail.core.settings import nearest

Document = dict[str, Any]
_SHORT_LABELS = {"label_mode": "mode", "label_when": "when", "label_temperature": "temperature"}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-7 as text; users mean the number. Of two equal keys PyYAML drops the first and says nothing."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            named, line = (key.tag, key.value), key.start_mark.line + 1
            if named in lines:
                raise yaml.YAMLError(f"{key.value!r} stands twice, on lines {lines[named]} and {line}")
            lines[named] = line
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def configs_folder() -> Path:
    """configs/ of the checkout, or the copy inside the installed package."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.exists() else package.parent / "configs"


def preset_names() -> list[str]:
    return sorted(path.stem for path in (configs_folder() / "methods").glob("*.yaml"))


def read_preset(name: str, where: str = "preset") -> Document:
    path = configs_folder() / "methods" / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"no preset {name!r}", where=where, cure=nearest(name, preset_names()))
    return read_document(path)


def read_document(path: Path) -> Document:
    """A YAML file as a mapping."""
    if not path.exists():
        raise UserError(f"no such config: {str(path)!r}", cure=f"Presets: {', '.join(preset_names())}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"no UTF-8 text ({error.reason})", where=str(path), cure="Save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path), cure="Give a YAML file") from None
    return parse_document(text, str(path))


def parse_document(text: str, where: str) -> Document:
    document = _parsed(text, where, "Mend the file")
    if not isinstance(document, dict):
        raise UserError("expected a mapping of settings", where=where, cure="See `sail init`")
    return document


def _parsed(text: str, where: str, cure: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date of the 13th month
        raise UserError(f"no valid YAML: {' '.join(str(error).split())}", where=where, cure=cure) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Document:
    """`over` on top of `base`, mapping by mapping. Another loss type drops the parameters of the old one."""
    base, over = _long_labels(base), _long_labels(over)
    return dict(base) | {key: _merged(key, base.get(key), value) for key, value in over.items()}


def _long_labels(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """`label_mode: soft` beside labels is short for `labels: {mode: soft}`: merged in one form, the later one wins."""
    short = {_SHORT_LABELS[key]: value for key, value in document.items() if key in _SHORT_LABELS}
    if not short:
        return document
    labels = _labels(document.get("labels", {}))
    if not isinstance(labels, Mapping):
        return document  # it is refused where settings are known
    rest = {key: value for key, value in document.items() if key not in _SHORT_LABELS}
    return rest | {"labels": {**labels, **short}}


def _labels(value: Any) -> Any:
    return {"by": value} if isinstance(value, str) else value


def _merged(key: str, known: Any, value: Any) -> Any:
    if key == "labels" and isinstance(known, Mapping):
        value = _labels(value)
    if not isinstance(value, Mapping):
        return value
    if isinstance(known, list):
        return _merge_by_name(key, known, value)
    if key == "labels":
        known = _labels(known)
    if not isinstance(known, Mapping):
        return dict(value)
    other_loss = key == "loss" and value.get("type", known.get("type")) != known.get("type")
    return dict(value) if other_loss else merge(known, value)


def _merge_by_name(key: str, entries: list[Any], changes: Mapping[str, Any]) -> list[Any]:
    """Change entries of a list of named mappings: phases: {sail: {num_rounds: 2}}."""
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise UserError("its entries have no names to change them by", where=key, cure="Give the whole list")
    names = [str(entry.get("name", index)) for index, entry in enumerate(entries)]
    for name, change in changes.items():
        if name not in names:
            raise UserError(f"no entry {name!r}", where=key, cure=nearest(name, names))
        if not isinstance(change, Mapping):
            raise UserError(f"{change!r} is no mapping", where=f"{key}.{name}", cure=f"Name a setting of {name}")
    return [merge(entry, changes.get(name, {})) for name, entry in zip(names, entries, strict=True)]


def override(document: Mapping[str, Any], assignments: Sequence[str]) -> Document:
    """Apply assignments such as routes.online.sail_coef=0.3; a phase goes by its name: phases.sail.num_rounds=2."""
    changed = dict(document)
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path:
            raise UserError(f"{assignment!r} is no key=value", where="overrides", cure="Write routes.online.share=0.5")
        quoted = "'" + text.replace("'", "''") + "'"
        value: Any = _parsed(text, assignment, f'If it is a text, quote it: "{path}={quoted}"') if text else None
        for key in reversed(path.split(".")):
            value = {key: value}
        changed = merge(changed, value)
    return changed
