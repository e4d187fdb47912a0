"""Is an answer equal to the known one?  Exactly for numbers, else by math-verify.

math-verify hands text to parsers that can run for ever and stops them by signals,
which works on the main thread only.  Here it runs in the sandbox: one process that
stays, a time limit that holds on every thread, and no way out for a hostile answer.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from pathlib import Path

from flowrl_lab.sandbox import (
    Limits,
    SandboxServer,
    SandboxUnavailable,
    ServerStopped,
    sandbox_problem,
)
from flowrl_lab.tasks.real.answers import NotAnAnswer, read_number

__all__ = ["check_math_verify", "same_value"]

_LIMITS = Limits(cpu_seconds=2.0, wall_seconds=30.0, memory_mb=768)
_PACKAGES = ("math_verify", "latex2sympy2_extended", "sympy", "mpmath", "antlr4")
_COMMANDS = re.compile(
    r"\\(?:d|t)?frac|\\sqrt|\\cdot|\\times|\\div|\\left|\\right|\\pi|\\boxed|\\[$%,! ]"
)
# Any power but those with a one-digit or two-digit exponent that ends there.
_POWER = re.compile(r"(?:\^|\*\*)(?!(?:[0-9]{1,2}|\{[0-9]{1,2}\})(?![0-9^*{(]))")
_PROGRAM = r"""
import logging
logging.disable(logging.CRITICAL)
from math_verify import parse, verify

def answer(question):
    gold, given = (parse(f"${text}$", parsing_timeout=None) for text in question)
    return bool(given) and verify(gold, given, timeout_seconds=None)

answer(["1", r"\frac{2}{2}"])  # loads what loads late
"""


def same_value(known: str, given: str) -> tuple[bool, str]:
    """Whether ``given`` is the value ``known``, and a reason in words.

    Args:
        known: the right answer; a number or LaTeX.
        given: what the model answered, a short line of ASCII.

    Raises:
        NotAnAnswer: if ``given`` is no single value, or cannot be checked.
    """
    left, right = read_number(known), read_number(given)
    if left is not None and right is not None:
        return left == right, "right" if left == right else "another number"
    if re.search(r"[A-Za-z\\\n]", _COMMANDS.sub(" ", given)):
        raise NotAnAnswer("words beside the answer")
    if not re.search(r"[0-9]", given) and "\\pi" not in given:
        raise NotAnAnswer("no number in the answer")
    if re.search(r"[=<>~;:]", given):
        raise NotAnAnswer("more than one value in the answer")
    if "!" in given or _POWER.search(given.replace(" ", "")):
        raise NotAnAnswer("a power or factorial that is too large to work out")
    try:
        same = _server().ask([known, _unwrap(given)])
    except SandboxUnavailable:
        raise NotAnAnswer(
            "not a plain number, and math-verify is used in the sandbox only"
        ) from None
    except ServerStopped as stopped:
        raise NotAnAnswer(f"math-verify: {stopped}") from None
    return bool(same), "right" if same else "another value"


def _unwrap(text: str) -> str:
    """Without the dollar signs or the \\boxed around the whole answer."""
    text = text.strip().strip("$").strip()
    match = re.fullmatch(r"\\boxed\{(.*)\}", text)
    return match[1] if match else text


@functools.cache
def check_math_verify() -> None:
    """Prove once that math-verify works, so that no training run finds out later.

    Without a sandbox it is not used, so there is nothing to prove.

    Raises:
        ImportError: where it is missing or does not load in the sandbox.
    """
    if sandbox_problem() is not None:
        return
    try:
        works = _server().ask(["1/2", r"\frac{2}{4}"])
    except ServerStopped as error:
        raise ImportError(
            f"answers are checked by math-verify, which does not work here ({error}). "
            "Fix: pip install 'flowrl-lab[sets]'"
        ) from error
    if not works:
        raise ImportError(
            "math-verify does not see that 1/2 is 2/4. Fix: pip install "
            "'flowrl-lab[sets]' for a version that was tested."
        )


@functools.cache
def _server() -> SandboxServer:
    problem = sandbox_problem()
    if problem is not None:
        raise SandboxUnavailable(problem)
    return SandboxServer(_PROGRAM, limits=_LIMITS, readable=_find_folders())


if hasattr(os, "register_at_fork"):  # a fork may hold a lock that nobody opens
    os.register_at_fork(after_in_child=_server.cache_clear)


def _find_folders() -> tuple[Path, ...]:
    """Where math-verify and what it needs are installed."""
    found = set()
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(
                f"answers are checked by math-verify, and {name} is missing. "
                "Fix: pip install 'flowrl-lab[sets]'"
            )
        found.add(Path(next(iter(spec.submodule_search_locations))).parent)
    return tuple(sorted(found))
