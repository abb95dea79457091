"""The command line: `sail init`, `sail run`, `sail plan`, `sail ablate` and what looks at their results."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sail.core.errors import NO_SPACE, LaunchError, UserError, WaitingForPeopleError
from sail.serving.errors import ServerError

if TYPE_CHECKING:  # commands import what they need: `sail --help` waits for no torch
    from loops.ablation import Ablation
    from loops.ablation_folder import AblationFolder
    from loops.config import Config
    from loops.run_folder import RunFolder
    from sail.core.run_settings import RunSettings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(width=None if sys.stdout.isatty() else 120)
_ALARM = 4  # evaluation.stop_on_alarm ended the run
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

    text = starter_config(preset, overrides or [], str(out or f"{preset}.yaml"))
    if out is None:
        print(text, end="")
    elif out.exists():
        raise UserError(f"{str(out)!r} exists", where="--out", cure="Choose another name, or remove it")
    else:
        try:
            out.write_text(text)
        except OSError as error:
            problem = f"{str(out)!r} cannot be written ({error.strerror})"
            raise UserError(problem, where="--out", cure="Check the folder it is to lie in") from None


@app.command()
def run(config: str, overrides: Overrides = None, out: Out = None, smoke: Smoke = False) -> None:
    """Run a config, or resume it: the same command. Ends with 4 if an alarm stopped it."""
    from loops.run import run as run_config

    loaded, settings, folder = _load(config, overrides, out, smoke)
    if not run_config(loaded, settings, folder, console):
        raise typer.Exit(_ALARM)


@app.command()
def ablate(config: str, overrides: Overrides = None, out: Out = None, smoke: Smoke = False) -> None:
    """Run or resume every arm under every seed, sharing what is equal, and compare them. Ends with 1 if one failed."""
    from loops.ablate import ablate as ablate_config

    if not ablate_config(*_load_ablation(config, overrides, out, smoke), console):
        raise typer.Exit(1)


@app.command()
def plan(config: str, overrides: Overrides = None, out: Out = None, smoke: Smoke = False) -> None:
    """What would run, what is reused, memory, tokens, disk. Computes nothing; of Hub models it fetches the configs."""
    from loops.ablation import is_ablation
    from loops.ablation_plan import print_ablation_plan
    from loops.checks import check_run
    from loops.estimates import print_plan
    from loops.run import make_plan
    from sail.generation import ENGINES

    if is_ablation(config):
        print_ablation_plan(*_load_ablation(config, overrides, out, smoke), console)
        return
    _, settings, folder = _load(config, overrides, out, smoke)
    for warning in check_run(settings, ENGINES):
        console.print(f"[yellow]warning[/] {escape(warning)}", highlight=False)
    print_plan(make_plan(settings, folder, download=False), settings, console)


@app.command()
def status(run: RunArgument) -> None:
    """The rounds of a run and where it stands; of an ablation, which runs are done."""
    from loops.ablate import print_ablation_status
    from loops.ablation_folder import AblationFolder, is_ablation_folder
    from loops.inspection import print_status

    if is_ablation_folder(run):
        print_ablation_status(AblationFolder(run.absolute()), console)
    else:
        print_status(run, console)


@app.command()
def report(run: RunArgument) -> None:
    """Print the table of a run or an ablation and write report.html anew."""
    from loops.ablate import compare
    from loops.ablation_folder import AblationFolder, is_ablation_folder
    from loops.inspection import rewrite_report

    if is_ablation_folder(run):
        compare(AblationFolder(run.absolute()), console)
    else:
        rewrite_report(run, console)


@app.command()
def show(run: RunArgument, id: Annotated[str, typer.Argument(help="a prompt, response, pair or artifact id")]) -> None:
    """Everything a run knows of one id, from prompt to label."""
    from loops.inspection import show_id

    show_id(run, id, console)


@app.command()
def verify(run: RunArgument) -> None:
    """Compare every artifact of a run, or of an ablation's runs, with its manifest. Ends with 1 if one is amiss."""
    from loops.upkeep import verify_run

    if not verify_run(run.absolute(), console):
        raise typer.Exit(1)


@app.command()
def prune(
    root: Annotated[Path, typer.Argument(help="an output root, such as runs")] = Path("runs"),
    dry: Annotated[bool, typer.Option("--dry", help="say what would go, remove nothing")] = False,
) -> None:
    """Remove the artifacts in a root's store that no run in it points to."""
    from loops.upkeep import prune_root

    prune_root(root.absolute(), console, dry=dry)


@app.command()
def doctor(
    config: Annotated[str | None, typer.Argument(help="whose model and vllm settings; default a tiny model")] = None,
    overrides: Overrides = None,
    server: Annotated[bool, typer.Option(help="start, sample, sync, verify and stop a vLLM server")] = True,
) -> None:
    """Versions, devices and free disk, and a vLLM server from start to stop: for bug reports."""
    from loops.doctor import print_doctor
    from loops.server_check import check_server

    settings = None if config is None else _settings(config, overrides)
    print_doctor(console)
    if server and find_spec("vllm"):
        check_server(settings, console)


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

    serve_forever(_settings(config, overrides), console)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:g}" for key, number in value.items()) or "-"
    return str(value or "-")


def _settings(config: str, overrides: list[str] | None) -> "RunSettings":
    """The settings of a config alone: nothing is kept in a run's folder."""
    from loops.config import load_config

    return load_config(config, overrides or []).settings


def _load(
    config: str, overrides: list[str] | None, out: Path | None, smoke: bool
) -> "tuple[Config, RunSettings, RunFolder]":
    """The config, its settings (tiny with --smoke), and the run's folder."""
    from loops.config import load_config, smoke_overrides
    from loops.run_folder import RunFolder

    loaded = load_config(config, overrides or [])
    settings = smoke_overrides(loaded.settings) if smoke else loaded.settings
    path = out if out is not None else Path("runs") / (loaded.name + ("-smoke" if smoke else ""))
    folder = RunFolder(path.absolute())
    if out is None:
        folder.check_owner(loaded)
    return loaded, settings, folder


def _load_ablation(
    config: str, overrides: list[str] | None, out: Path | None, smoke: bool
) -> "tuple[Ablation, AblationFolder]":
    """The ablation and its folder."""
    from loops.ablation import load_ablation
    from loops.ablation_folder import AblationFolder

    loaded = load_ablation(config, overrides or [], smoke=smoke)
    path = out if out is not None else Path("runs") / (loaded.name + ("-smoke" if smoke else ""))
    folder = AblationFolder(path.absolute())
    folder.check_free(loaded, chosen=out is not None)
    return loaded, folder


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        _complain(str(error))
        sys.exit(2)
    except WaitingForPeopleError as error:
        console.print(f"[yellow]waiting[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(3)
    except (ServerError, LaunchError) as error:
        _complain(f"{error}. Nothing committed is lost: the same command goes on from here")
        sys.exit(1)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        _complain(f"no space left on the disk of {error.filename or Path.cwd()}: free some, the same command goes on")
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == _CTRL_C:
            Console(stderr=True).print("stopped; the same command goes on from here")
        raise


def _complain(message: str) -> None:
    Console(stderr=True).print(f"[red]error[/] {escape(message)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
