"""What the documentation says is so: links, files, commands, settings, metrics, YAML, and the generated pages."""

import importlib.machinery
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.pages import (
    PAGES,
    ROOT,
    command_lines,
    is_setting,
    mapped_files,
    wrong_commands,
    wrong_files,
    wrong_links,
    wrong_metrics,
    wrong_settings,
    wrong_settings_of_code,
    wrong_yaml,
)

_LIVING = [page for page in PAGES if page.name != "log.md"]  # the log tells what was, and is never rewritten
_OF_THE_TEXT = [wrong_commands, wrong_files, wrong_metrics, wrong_settings, wrong_yaml]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    assert wrong_links(page, page.read_text()) == []


@pytest.mark.parametrize("page", _LIVING, ids=lambda page: page.name)
@pytest.mark.parametrize("wrong", _OF_THE_TEXT, ids=lambda wrong: wrong.__name__)
def test_what_a_page_names_exists(wrong: Callable[[str], list[str]], page: Path) -> None:
    assert wrong(page.read_text()) == []


def test_settings_that_the_code_names_in_its_messages_exist() -> None:
    modules = [path for folder in ("sail", "loops") for path in (ROOT / folder).rglob("*.py")]
    wrong = {str(path): found for path in modules if (found := wrong_settings_of_code(path.read_text()))}
    assert wrong == {}


def test_the_map_has_every_file_once_and_no_other() -> None:
    mapped = mapped_files((ROOT / "README.md").read_text())
    there = {str(path.relative_to(ROOT)) for folder in ("sail", "loops") for path in (ROOT / folder).rglob("*.py")}
    assert sorted(mapped) == sorted(set(mapped)), "a file stands there twice"
    assert sorted(there - set(mapped)) == [], "files without a line"
    assert sorted(set(mapped) - there) == [], "lines without a file"


# ---- pages written by scripts/docs_configuration ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def docs_script() -> ModuleType:
    path = str(ROOT / "scripts" / "docs_configuration")
    loader = importlib.machinery.SourceFileLoader("docs_configuration", path)
    spec = importlib.util.spec_from_loader("docs_configuration", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["configuration.md", "metrics.md", "losses.md"])
def test_generated_pages_are_current(name: str, docs_script: ModuleType) -> None:
    page = ROOT / "docs" / name
    assert page.read_text() == docs_script.pages()[page], "run .venv/bin/python scripts/docs_configuration"


def test_every_section_of_the_settings_has_its_table(docs_script: ModuleType) -> None:
    assert docs_script.unlisted_sections() == set()


def test_the_tables_have_every_field_with_its_role_and_default(docs_script: ModuleType) -> None:
    page = docs_script.configuration_page()
    assert "| `learning_rate` | float, > 0 | `5e-7` | meaning |" in page
    assert "| `save_steps` | int, > 0 | `100` | execution | steps between step checkpoints |" in page
    assert "| `from` | str | required | meaning |" in page, "by the name users write"


# ---- the checks themselves -------------------------------------------------------------------------------------------

_WRONG_PAGE = """\
# A page

`sail runn`, `sail init no-such-preset`, `sail/core/no_such_file.py`, `rewards/no_such_metric`, `policy/kl0`,
`update.no_such_key`, `routes.online.no_such_key=0.3`, [gone](docs/no_such_page.md), [gone](#no-such-heading).

    sail run configs/quickstart.yaml updat.steps=3

```yaml
update: {stepz: 3}
```
```yaml
routes: {online: {keep: best_worst}}
```
"""


def test_every_check_finds_its_mistake() -> None:
    assert wrong_links(ROOT / "README.md", _WRONG_PAGE) == ["docs/no_such_page.md", "#no-such-heading"]
    assert wrong_files(_WRONG_PAGE) == ["sail/core/no_such_file.py"]
    assert wrong_metrics(_WRONG_PAGE) == ["rewards/no_such_metric", "policy/kl0"]
    assert wrong_settings(_WRONG_PAGE) == ["update.no_such_key", "routes.online.no_such_key"]
    cure = 'cure = f"Set update.stepz, data.{name}.limit or vllm.{key}, or launch: fsdp2, or launch: {{gpus: [1]}}"'
    assert wrong_settings_of_code(cure) == ["update.stepz", "launch: fsdp2"]
    command, preset, override = sorted(wrong_commands(_WRONG_PAGE), key=len)
    assert (command, preset) == ("sail runn", "sail init no-such-preset") and "unknown key 'updat'" in override
    misspelt, refused = wrong_yaml(_WRONG_PAGE)
    assert "stepz" in misspelt and "no draw from the policy" in refused


def test_a_sound_page_passes_every_check() -> None:
    page = "# A page\n\n`sail plan`, `sail/core/`, `rewards/margins`, `update.steps`, [here](#a-page).\n"
    assert wrong_links(ROOT / "README.md", page) == []
    assert [wrong(page) for wrong in _OF_THE_TEXT] == [[]] * len(_OF_THE_TEXT)


@pytest.mark.parametrize(("name", "known"), [
    ("data.<name>.overlong", True), ("data.prefs.path", True), ("data.prefs.pathh", False),
    ("labelers.rm.fit.epochs", True), ("labelers.rm.kindd", False), ("prompts.from", True), ("prompts.source", False),
    ("routes.online.label_mode", True), ("routes.online.labels.mode", True), ("routes.online.labels.modes", False),
    ("loss.beta", True), ("loss.beta.gamma", False), ("phases.sail.num_rounds", True), ("phases.sail.rounds", False),
    ("vllm.args.tensor-parallel-size", True), ("lora.r", True), ("lora.rank", False),
])  # fmt: skip
def test_a_dotted_name_is_a_setting_or_not(name: str, known: bool) -> None:
    assert is_setting(name) is known


def test_commands_are_read_from_blocks_and_spans_with_their_continuations() -> None:
    page = "`sail doctor` and sail\n\n    sail run a.yaml \\\n      b=1  # a comment\n\n```sh\nsail plan c.yaml\n```\n"
    found = [["plan", "c.yaml"], ["run", "a.yaml", "b=1"], ["doctor"]]
    assert list(command_lines(page)) == found
