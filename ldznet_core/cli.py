"""The command line: which commands there are, what they print, and how a fault becomes an exit status.

Data goes to stdout, everything else to stderr. It knows nothing of models; the work is in `commands`.
"""

import argparse
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module

from .errors import BAD_INPUT, DONE, FAULT, INTERRUPTED, InputError, brief, is_disk_full, is_out_of_memory, why

COMMANDS = {
    "segment": "find what words name in pictures, and write masks",
    "generate": "draw a picture and take masks from the drawing itself",
    "train": "train a decoder for a model, on public data or your own masks",
    "distil": "train a decoder for a model on what the model draws itself, without any data",
    "evaluate": "score masks on any data, beside the paper's tables",
    "sweep": "measure which blocks and timesteps of a model know where a phrase is",
    "bench": "measure what masks cost on this machine",
    "convert": "turn the authors' checkpoint into a decoder file",
    "info": "say what a decoder file or a model is",
    "mini build": "rebuild the bundled miniature model from public packages",
}
GROUPS = {"mini": "the bundled miniature model"}


class Parser(argparse.ArgumentParser):
    """Refuses bad usage like any other bad input, in one line, instead of printing the usage and leaving."""

    def error(self, message: str):
        raise InputError(f"{message} (see '{self.prog} --help')")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 done, 2 bad usage or bad input, 1 a fault of ours, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in argv
    # Own handler for the length of this call: `main` may run inside a program with a logging of its own.
    log = logging.getLogger(__package__)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("ldznet: %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        with warnings.catch_warnings():
            if not verbose:  # libraries' warnings are for programmers
                warnings.simplefilter("ignore")
            args = build_parser(argv).parse_args(argv)
            return show(args.run(args))
    except InputError as error:
        complain(str(error))
        return BAD_INPUT
    except ModuleNotFoundError as error:
        if verbose or (error.name or "").startswith(__package__):
            return report(error, verbose)
        complain(f"this command needs the Python package {error.name}, which is not installed: install it")
        return BAD_INPUT
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has enough
        drop_output()
        return DONE
    except Exception as error:
        cause = outside_cause(error)
        if cause is None:
            return report(error, verbose)
        drop_output()
        complain(cause)
        return BAD_INPUT
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a call. Only the command that is called is imported, so that help stays quick and a
    command whose optional packages are missing does no harm to the others."""
    words = [word for word in argv if not word.startswith("-")]
    parser = Parser(
        prog="ldznet",
        description="Words to masks, with a latent diffusion model's own features.",
        epilog="'ldznet COMMAND --help' says what a command takes.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    families = {"": commands}
    for command, about in COMMANDS.items():
        family, _, name = command.rpartition(" ")
        if family not in families:
            group = commands.add_parser(family, help=GROUPS[family], description=GROUPS[family].capitalize() + ".")
            families[family] = group.add_subparsers(metavar="COMMAND", required=True)
        sub = families[family].add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        if words[: command.count(" ") + 1] == command.split():
            module = import_module(f".commands.{family or name}", __package__)
            module.add_arguments(sub)
            sub.add_argument("--verbose", action="store_true", help="tell more, and show where a fault arose")
            sub.set_defaults(run=module.run)
    return parser


def show(results: Iterator[dict | str] | int | None) -> int:
    """Print what a command yields, as it comes; returns its exit status."""
    if not isinstance(results, Iterator):
        return results or DONE
    while True:
        try:
            result = next(results)
        except StopIteration as end:
            return end.value or DONE
        text = result if isinstance(result, str) else json.dumps(result)
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # a terminal may lack letters of a file's name
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def complain(message: str) -> None:
    print("ldznet:", " ".join(message.split()), file=sys.stderr)


def drop_output() -> None:
    """Writes nothing more to a stdout that fails: Python would complain once more when it flushes at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # it may be no file of the system's
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def outside_cause(error: Exception) -> str | None:
    """One sentence where the machine or a file is the cause of an error; None where it is a fault of ours."""
    if is_disk_full(error):
        return "the disk is full: free space, then try again"
    if isinstance(error, OSError) and error.filename:
        return f"cannot read or write {error.filename} ({why(error)})"
    if is_out_of_memory(error):
        return "there is not enough memory: close other programs, or try a smaller picture or --dtype bfloat16"
    return None


def report(error: Exception, verbose: bool) -> int:
    """Say that a fault is ours, with its traceback where the user asked for it."""
    if verbose:
        traceback.print_exception(error)
    ask = "please report it with the lines above" if verbose else "please report it, with what --verbose adds"
    complain(f"a fault of this program ({brief(error)}); {ask}")
    return FAULT
