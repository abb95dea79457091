"""`sail methods`: the registries as rows."""

from typing import Any

from loops.documents import preset_names, read_preset
from sail.generation import ENGINES
from sail.labeling import LABELERS, PAIRINGS
from sail.objectives import ALIASES, LOSSES

Row = dict[str, Any]


def all_methods() -> dict[str, list[Row]]:
    """kind -> rows; every row has name, unit, needs, link, source, status."""
    return {
        "losses": [_loss(name) for name in LOSSES],
        "labelers": [
            _row(name, row.unit, list(row.needs), None, row.source, row.status) for name, row in LABELERS.items()
        ],
        "engines": [_row(name, "response", [row.needs], None, row.source, row.status) for name, row in ENGINES.items()],
        "pairings": [
            _row(name, "pair", [], None, (pairing.__doc__ or "").split("\n")[0], "exact")
            for name, pairing in PAIRINGS.items()
        ],
        "presets": [_preset(name) for name in preset_names()],
    }


def _row(name: str, unit: str, needs: list[str], link: str | None, source: str, status: str) -> Row:
    return {"name": name, "unit": unit, "needs": needs, "link": link, "source": source, "status": status}


def _loss(name: str) -> Row:
    row = LOSSES[name]
    aliases = [alias for alias, target in ALIASES.items() if target == name]
    link = None if row.link is None else row.link.__name__
    listed = _row(name, row.unit, list(row.needs), link, row.source, row.status)
    return listed | {"params": row.params, "aliases": aliases}


def _preset(name: str) -> Row:
    preset = read_preset(name)
    loss = preset.get("loss", {}).get("type", "")
    about = preset.get("about", {})
    unit = LOSSES[loss].unit if loss in LOSSES else ""
    return _row(name, unit, about.get("needs", []), None, about.get("source", ""), about.get("status", ""))
