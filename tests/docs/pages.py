"""What a page of documentation claims: links, files, commands, metrics, settings, YAML. One function finds each kind.

Every `wrong_...` function takes the page's text and returns what does not hold, so that a test can show it fail.
"""

import ast
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from loops.ablation import is_ablation, load_ablation, parse_ablation
from loops.checks import check_run
from loops.cli import app
from loops.config import load_config, resolve
from loops.documents import Document, merge, parse_document, preset_names
from sail.core.errors import UserError
from sail.core.metrics import METRICS
from sail.core.run_settings import PhaseSettings, RunSettings
from sail.generation import ENGINES

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = sorted((ROOT / "docs" / "methods").glob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *FAMILIES])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^    .*\n?)+", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(r"(?:sail|loops|tests|configs|scripts|docs)/[\w./-]*")
_METRIC = re.compile(rf"(?:{'|'.join(sorted({name.split('/')[0] for name in METRICS if '/' in name}))})/[a-z0-9_/<>]+")
_SETTING = re.compile(r"[a-z_]+(?:\.(?:[a-z_]+|<name>))+")
_ENDINGS = {"json", "jsonl", "yaml", "md", "py", "html"}
_SECTIONS = ("launch", "vllm", "lora", "prompts", "round", "update", "generation", "importance_sampling", "hygiene")
_SHORT = {"label_mode": "mode", "label_when": "when", "label_temperature": "temperature"}
_ACCEPTED = {"update.per_device_train_batch_size", "update.gradient_accumulation_steps"}

FRAGMENT: dict[str, Any] = {  # what a YAML block that is no whole config is put on top of
    "preset": "sail-pr",
    "model_name_or_path": "a-model",
    "data": {"prefs": {"path": "prefs.jsonl"}},
    "labelers": {"rm": {"kind": "reward_model", "path": "a-reward-model"}},
    "prompts": {"from": "prefs", "per_round": 8},
}


def prose(text: str) -> str:
    """The page without its blocks of code."""
    return _INDENTED.sub("", _FENCE.sub("", text))


def spans(text: str) -> list[str]:
    """What stands between backticks in the prose."""
    return _CODE.findall(prose(text))


def command_lines(text: str) -> Iterator[list[str]]:
    """Every `sail ...` of the page, in code spans and in blocks, as words; a backslash continues a line."""
    blocks = [body for language, body in _FENCE.findall(text) if language in ("", "sh", "bash")]
    blocks += _INDENTED.findall(_FENCE.sub("", text))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *spans(text)]:
        if re.match(r"\s*(\.venv/bin/)?sail [a-z]", line):
            yield shlex.split(line, comments=True)[1:]


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def wrong_links(page: Path, text: str) -> list[str]:
    wrong = []
    for target in _LINK.findall(_FENCE.sub("", text)):
        path, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (page.parent / path).resolve() if path else page
        known = slugs(text if file == page else file.read_text()) if anchor and file.is_file() else set()
        if not file.exists() or (anchor and anchor not in known):
            wrong.append(target)
    return wrong


def wrong_files(text: str) -> list[str]:
    """Paths of the repository in code spans that do not exist."""
    named = [span for span in spans(text) if _FILE.fullmatch(span) and span not in METRICS]
    return [name for name in named if not (ROOT / name).exists()]


def wrong_metrics(text: str) -> list[str]:
    named = [span for span in spans(text) if _METRIC.fullmatch(span) and not (ROOT / span).exists()]
    return [name for name in named if name not in METRICS]


def wrong_commands(text: str) -> list[str]:
    """Commands the CLI does not have, presets and shipped configs that do not load with their overrides."""
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    wrong = []
    for words in command_lines(text):
        command, rest = words[0], words[1:]
        if command not in known:
            wrong.append(f"sail {command}")
        elif command == "init" and rest and rest[0].islower() and rest[0] not in preset_names():
            wrong.append(f"sail init {rest[0]}")
        elif command in ("run", "plan", "ablate") and rest and (ROOT / rest[0]).is_file():
            wrong += _load_problem(rest)
    return wrong


def _load_problem(words: list[str]) -> list[str]:
    load = load_ablation if is_ablation(str(ROOT / words[0])) else load_config
    try:
        load(str(ROOT / words[0]), [word for word in words[1:] if "=" in word and not word.startswith("-")])
    except UserError as error:
        return [f"{' '.join(words)}: {error}"]
    return []


def wrong_yaml(text: str) -> list[str]:
    """YAML blocks that sail would refuse: whole configs as they are, fragments on top of FRAGMENT."""
    wrong = []
    for language, body in _FENCE.findall(text):
        if language not in ("yaml", "yml"):
            continue
        try:
            asked = parse_document(body, "a block")
            for settings in _meant_by(asked):
                check_run(settings, ENGINES)
        except UserError as error:
            wrong.append(str(error))
    return wrong


def _meant_by(asked: Document) -> list[RunSettings]:
    """The run that a block means, or the runs of an ablation."""
    if "arms" in asked:
        base = asked["base"] if isinstance(asked.get("base"), dict) else FRAGMENT
        return [run.settings for run in parse_ablation({**asked, "base": base}, Path("a-block.yaml")).runs]
    whole = asked if "model_name_or_path" in asked else merge(FRAGMENT, asked)
    return [resolve(whole, "a block")]


def wrong_settings(text: str) -> list[str]:
    """Dotted names in code spans that begin like a setting and are none: `update.stepz`; `key=value` counts too."""
    starts = {*RunSettings.model_fields, *PhaseSettings.model_fields}
    wrong = []
    for span in spans(text):
        name = re.split(r"[=:]", span, maxsplit=1)[0]
        a_setting = _SETTING.fullmatch(name) and name.split(".")[0] in starts and name.split(".")[-1] not in _ENDINGS
        if a_setting and not is_setting(name):
            wrong.append(name)
    return wrong


def wrong_settings_of_code(source: str) -> list[str]:
    """Of a module's messages: dotted names that are no settings, and sections that are set to one word of a value."""
    starts = {*RunSettings.model_fields, *PhaseSettings.model_fields}
    open_ended = {*_ENDINGS, "<name>"}
    wrong = []
    for message in _messages(ast.parse(source)):
        named = [name.split(".") for name in re.findall(rf"(?<![\w./`<-]){_SETTING.pattern}(?![\w/])", message)]
        asked = [".".join(parts) for parts in named if parts[0] in starts and parts[-1] not in open_ended]
        wrong += [name for name in asked if not is_setting(name)]
        wrong += re.findall(rf"(?<![\w.`])(?:{'|'.join(_SECTIONS)}): \w+", message)
    return wrong


def _messages(tree: ast.Module) -> Iterator[str]:
    """Every text of several words that is no docstring; what an f-string fills in is <name>."""
    docstrings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    parts_of = [part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values]
    left_out = {id(node) for node in [*docstrings, *parts_of]}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "<name>" for part in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def is_setting(name: str) -> bool:
    """Whether a dotted name leads to a setting; the names of routes, data sources and phases are free."""
    parts = name.split(".")
    if name in _ACCEPTED:
        return True
    if parts[0] == "phases":
        parts = parts[2:]
    roots = (RunSettings, PhaseSettings)
    return any(_leads(root, parts) for root in roots)


def _leads(annotation: Any, parts: list[str]) -> bool:
    if not parts:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation.__name__ == "LossSettings":
            return len(parts) == 1
        if annotation.__name__ == "RouteSettings" and parts[0] in _SHORT:
            parts = ["labels", _SHORT[parts[0]], *parts[1:]]
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        return parts[0] in fields and _leads(fields[parts[0]].annotation, parts[1:])
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict:
        return len(parts) == 1 or _leads(arguments[1], parts[1:]) or arguments[1] is Any
    return any(_leads(argument, parts) for argument in arguments)


def named(text: str, kind: str) -> list[str]:
    """The losses or presets of a family's page: its line `- losses: ...` or `- presets: ...`."""
    line = re.search(rf"^- {kind}: (.*)$", text, re.MULTILINE)
    return _CODE.findall(line[1]) if line else []


def formula_of(loss: str, losses_page: str) -> str:
    """A loss's formula in the generated page of losses."""
    return losses_page.split(f"### `{loss}`\n\n    ", 1)[1].split("\n", 1)[0]


def mapped_files(text: str) -> list[str]:
    """The paths of README's map: a line at the margin names a folder, an indented one a file in it."""
    block = text[text.index("## Map") :].split("```text\n", 1)[1].split("```", 1)[0]
    files, folder = [], ""
    for line in block.splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            files.append(folder + name)
        else:
            folder = name
            files.append(f"{folder}__init__.py")
    return files
