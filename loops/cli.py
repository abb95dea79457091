"""The command line: sail init | run | plan | status | report | show | doctor | methods | serve."""

import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sail.core.errors import LaunchError, UserError
from sail.serving.errors import ServerError

if TYPE_CHECKING:  # commands import what they need: `sail --help` waits for no torch
    from loops.config import Config
    from loops.run_folder import RunFolder
    from sail.core.run_settings import RunSettings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(width=None if sys.stdout.isatty() else 120)
_CTRL_C = 130  # what typer makes of a KeyboardInterrupt, without a word

Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, for example routes.online.sail_coef=0.3")]
Out = Annotated[Path | None, typer.Option("--out", help="the run's folder; default runs/<config's name>")]
NewFile = Annotated[Path | None, typer.Option("--out", help="write to this file, which must not exist")]
Smoke = Annotated[bool, typer.Option("--smoke", help="the same run, tiny: everything once in a minute")]
RunArgument = Annotated[Path, typer.Argument(help="a run's folder, such as runs/quickstart")]


@app.command()
def init(preset: str, overrides: Overrides = None, out: NewFile = None) -> None:
    """Print (or write to --out) a commented config of a preset."""
    from loops.starter import starter_config

    text = starter_config(preset, overrides or [])
    if out is None:
        print(text, end="")
    elif out.exists():
        raise UserError(f"{str(out)!r} exists", where="--out", cure="Choose another name, or remove it")
    else:
        out.write_text(text)


@app.command()
def run(config: str, overrides: Overrides = None, out: Out = None, smoke: Smoke = False) -> None:
    """Run a config, or resume it: the same command."""
    from loops.run import run as run_config

    loaded, settings, folder = _load(config, overrides, out, smoke)
    run_config(loaded, settings, folder, console)


@app.command()
def plan(config: str, overrides: Overrides = None, out: Out = None, smoke: Smoke = False) -> None:
    """What would run, what is reused, memory, tokens, disk. Computes nothing; Hub models are downloaded."""
    from loops.checks import check_run
    from loops.estimates import print_plan
    from loops.run import make_plan
    from sail.generation import ENGINES

    _, settings, folder = _load(config, overrides, out, smoke)
    for warning in check_run(settings, ENGINES):
        console.print(f"[yellow]warning[/] {escape(warning)}", highlight=False)
    print_plan(make_plan(settings, folder), settings, console)


@app.command()
def status(run: RunArgument) -> None:
    """The rounds of a run and where it stands."""
    from loops.inspection import print_status

    print_status(run, console)


@app.command()
def report(run: RunArgument) -> None:
    """Print the table of a run and write report.html anew."""
    from loops.inspection import rewrite_report

    rewrite_report(run, console)


@app.command()
def show(run: RunArgument, id: Annotated[str, typer.Argument(help="a prompt, response, pair or artifact id")]) -> None:
    """Everything a run knows of one id, from prompt to label."""
    from loops.inspection import show_id

    show_id(run, id, console)


@app.command()
def doctor() -> None:
    """Versions, devices and free disk, for bug reports."""
    from loops.doctor import print_doctor

    print_doctor(console)


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False) -> None:
    """Every loss, labeler, engine, pairing and preset, from the registries."""
    from loops.methods import all_methods

    listed = all_methods()
    if as_json:
        print(json.dumps(listed, indent=1))
        return
    for kind, rows in listed.items():
        table = Table("name", *[key for key in rows[0] if key != "name"], title=kind, title_justify="left")
        for row in rows:
            table.add_row(*[_cell(value) for value in row.values()])
        console.print(table)


@app.command()
def serve(config: str, overrides: Overrides = None) -> None:
    """Serve the config's starting model with vLLM, for runs with vllm.mode: external. Stop with Ctrl-C."""
    from loops.serving import serve_forever

    _, settings, _ = _load(config, overrides, None, False)
    serve_forever(settings, console)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:g}" for key, number in value.items()) or "-"
    return str(value or "-")


def _load(
    config: str, overrides: list[str] | None, out: Path | None, smoke: bool
) -> "tuple[Config, RunSettings, RunFolder]":
    """The config, its settings (tiny with --smoke), and the run's folder."""
    from loops.config import load_config, smoke_overrides
    from loops.run_folder import RunFolder

    loaded = load_config(config, overrides or [])
    settings = smoke_overrides(loaded.settings) if smoke else loaded.settings
    folder = out if out is not None else Path("runs") / (loaded.name + ("-smoke" if smoke else ""))
    return loaded, settings, RunFolder(folder.absolute())


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        _complain(str(error))
        sys.exit(2)
    except (ServerError, LaunchError) as error:
        _complain(f"{error}. Nothing committed is lost: the same command goes on from here")
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _complain(f"no space left on the disk of {error.filename or Path.cwd()}: free some, the same command goes on")
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == _CTRL_C:
            Console(stderr=True).print("stopped; the same command goes on from here")
        raise


def _complain(message: str) -> None:
    Console(stderr=True).print(f"[red]error[/] {escape(message)}", soft_wrap=True, highlight=False)
