"""The command `brainslices`, whose subcommands are the scripts of this folder.

brainslices prepare-data --source phantom --out data/phantoms
brainslices sample --run runs/prior --count 16 --out outputs/samples
brainslices --tyro-print-completion bash

Only the module of the subcommand is imported, so that `--help` answers at once.
"""

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from brainslices import cli
from brainslices.errors import InputError
from brainslices.tables import format_table

FOLDER = Path(__file__).parent
COMPLETION_FLAGS = ("--tyro-print-completion", "--tyro-write-completion")


def command_files() -> dict[str, Path]:
    """Return the script of each subcommand, by the subcommand's name."""
    scripts = sorted(path for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    return {path.stem.replace("_", "-"): path for path in scripts}


def load_command(name: str) -> ModuleType:
    """Import the module of a subcommand."""
    module = command_files()[name].stem
    return importlib.import_module(f"{__package__}.{module}" if __package__ else module)


def usage() -> str:
    """Return the help text: a line for each subcommand, from its module's docstring."""
    rows = [
        (f"  {name}", str(ast.get_docstring(ast.parse(path.read_text()))).splitlines()[0])
        for name, path in command_files().items()
    ]
    return (
        "usage: brainslices COMMAND [OPTIONS]\n\n"
        "Discrete codes of brain MRI slices, and novel slices sampled from them.\n\n"
        f"commands:\n{format_table(rows)}\n\n"
        "brainslices COMMAND --help lists the options of a command.\n"
        "brainslices --tyro-print-completion {bash,zsh,tcsh} prints a completion script.\n"
    )


def print_completion(argv: Sequence[str]) -> None:
    """Print or write the shell completion of all subcommands."""
    import tyro

    arguments = {name: load_command(name).Arguments for name in command_files()}
    tyro.extras.subcommand_cli_from_dict(
        arguments, prog="brainslices", args=argv, config=(tyro.conf.OmitArgPrefixes,)
    )


def dispatch(argv: Sequence[str]) -> int:
    """Run a subcommand.

    Args:
        argv: the words after `brainslices`.

    Returns:
        The exit status, as `cli.run`.
    """
    if argv and argv[0] in COMPLETION_FLAGS:
        print_completion(argv)
        return cli.DONE
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return cli.DONE if argv else cli.WRONG_USE
    name, *options = argv
    if name.replace("_", "-") not in command_files():
        known = ", ".join(command_files())
        return cli.print_error(InputError(f"Unknown command. Known: {known}. Received: {name!r}."))
    command = name.replace("_", "-")
    sys.argv = [f"brainslices {command}", *options]  # the program's name in the usage
    module = load_command(command)
    return cli.run(lambda: module.main(options))


def main() -> None:
    """Run the command line of this process."""
    sys.exit(dispatch(sys.argv[1:]))


if __name__ == "__main__":
    main()
