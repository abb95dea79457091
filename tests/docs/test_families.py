"""docs/methods/: a page per family, on which every loss and preset stands once, with its formula as the code has it."""

import re
from pathlib import Path

import pytest

from loops.documents import preset_names, read_preset
from sail.objectives import LOSSES
from tests.docs.pages import FAMILIES, ROOT, formula_of, named, spans

_LONGEST = 90
_PARTS = ("https://arxiv.org/abs/", "**Data", "**Defaults.**", "**Watch.**", "**Not for**", "**Elsewhere.**")


@pytest.mark.parametrize(("kind", "there"), [("losses", list(LOSSES)), ("presets", preset_names())])
def test_every_loss_and_preset_stands_on_the_page_of_its_family_and_no_other(kind: str, there: list[str]) -> None:
    listed = [name for page in FAMILIES for name in named(page.read_text(), kind)]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("page", FAMILIES, ids=lambda page: page.name)
def test_a_page_gives_the_formula_of_each_of_its_losses_as_the_registry_has_it(page: Path) -> None:
    text = page.read_text()
    written = " ".join(text.split())
    losses = (ROOT / "docs" / "losses.md").read_text()
    assert [name for name in named(text, "losses") if f"{name} {formula_of(name, losses)}" not in written] == []


@pytest.mark.parametrize("page", FAMILIES, ids=lambda page: page.name)
def test_a_page_speaks_of_each_of_its_presets(page: Path) -> None:
    text = page.read_text()
    body = text.split("- presets:", 1)[1].split("\n", 1)[1]
    spoken_of = {*spans(body), *re.findall(r"^preset: ([\w-]+)$", body, re.MULTILINE)}
    spoken_of |= {name.replace("_", "-") for name in spoken_of}  # by the name of its loss
    assert [name for name in named(text, "presets") if name not in spoken_of] == []


@pytest.mark.parametrize("page", FAMILIES, ids=lambda page: page.name)
def test_a_page_is_short_and_has_its_parts(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= _LONGEST
    assert [part for part in _PARTS if part not in text] == []


def test_the_page_of_concepts_links_to_every_family_and_has_every_preset() -> None:
    concepts = (ROOT / "docs" / "methods.md").read_text()
    assert [page.name for page in FAMILIES if f"(methods/{page.name})" not in concepts] == []
    assert set(preset_names()) - set(_rounds_said(concepts)) == set()


def test_the_page_of_concepts_says_how_many_rounds_each_preset_has() -> None:
    said = _rounds_said((ROOT / "docs" / "methods.md").read_text())
    assert said == {name: read_preset(name)["num_rounds"] for name in said} and said["spin"] == 3


def _rounds_said(concepts: str) -> dict[str, int]:
    """The first and the last column of the table of presets; "none" is 0."""
    table = concepts.split("| preset | responses | labels | rounds |\n", 1)[1].split("\n\n", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[1:]]
    return {name: int(cells[-1].replace("none", "0")) for cells in rows for name in re.findall(r"`([^`]+)`", cells[0])}


def test_names_are_read_from_their_line_alone_and_a_page_without_it_has_none() -> None:
    page = "# A page\n\n- losses: `dpo`, `ipo`\n- presets: none of its own\n\n- losses of `kto`\n"
    assert named(page, "losses") == ["dpo", "ipo"] and named(page, "presets") == [] == named("# A page\n", "losses")


def test_a_formula_is_found_under_its_own_heading() -> None:
    page = "### `dpo`\n\n    -log sigmoid(beta h)\n\n- also\n\n### `ipo`\n\n    (h - 1)^2\n"
    assert (formula_of("dpo", page), formula_of("ipo", page)) == ("-log sigmoid(beta h)", "(h - 1)^2")
