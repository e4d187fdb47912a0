"""The command line: ``python -m flowrl_lab train | compare | doctor | ...``.

The commands live in ``flowrl_lab.commands``; this module finds the one that is asked
for and turns its errors into messages and exit codes.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import sys

from flowrl_lab.commands import BAD_INPUT, COMMANDS, FAILED, INTERRUPTED

EXAMPLES = """examples:
  python -m flowrl_lab train --task landscape --algorithm flowrl --out runs/one
  python -m flowrl_lab compare --algorithms flowrl,grpo --seeds 5 --out runs/two
  python -m flowrl_lab compare --algorithms flowrl,flowrl:reward_scale=5,grpo \\
      --task make_number --out runs/three
  python -m flowrl_lab doctor
"""


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m flowrl_lab",
        description="Train, compare and check, without a notebook.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in dict.fromkeys(COMMANDS.values()):
        importlib.import_module(f"flowrl_lab.commands.{module}").add_parser(commands)
    return parser


def main(words: list[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done; 1 something failed; 2 wrong input; 130 stopped with Ctrl-C.
    """
    accept_every_character()
    words = sys.argv[1:] if words is None else list(words)
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(COMMANDS)}"
        print(f"error: {command!r} is no command; {hint}", file=sys.stderr)
        return BAD_INPUT
    args = build_parser().parse_args(words)
    args.words = words
    try:
        return args.action(args)
    except KeyboardInterrupt:
        print("\nStopped; what was saved before is kept.", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        if args.debug:
            raise
        for line in (f"error: {error}", *getattr(error, "__notes__", ())):
            print(line, file=sys.stderr)
        return BAD_INPUT if isinstance(error, ValueError) else FAILED


def accept_every_character() -> None:
    """Let the standard streams write what their encoding lacks as ``\\u03c0``.

    Output that is redirected on Windows, or under a plain C locale, has an encoding
    without Greek letters; nobody should lose a run to the table at its end.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in (
            "strict",
            "surrogateescape",
        ):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
