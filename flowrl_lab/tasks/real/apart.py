"""Both sides of a judgement: the function that is judged, and its judge.

Each side runs in a sandboxed process of its own, and this file is the program of
both (the standard library is all it needs).  The candidate's side gets a program and
inputs, never an expected value; whatever it does to its interpreter, nothing leaves
it but text.  The judge's side holds the tests and the authors' solution, and of the
candidate it sees that text, read as plain data of exact types: no object that could
lie about what it equals.
"""

from __future__ import annotations

import ast
import json
import random
import sys

KINDS = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
NO_CODE = ast.Expr | ast.AnnAssign  # a line of prose may parse as one of these
MOST_LINES, MOST_JOINED = 2_000, 12


# ------------------------------------------------------------------------ plain data


def pack(value):
    """``value`` as JSON can hold it; a container begins with the name of its kind.

    Subclasses become what they are beneath: what is packed is data, whoever wrote
    the methods that list it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return ["dict", *([pack(key), pack(item)] for key, item in value.items())]
    for name, kind in KINDS.items():
        if isinstance(value, kind):
            return [name, *map(pack, value)]
    if is_number("decimal", "Decimal", value):
        return ["Decimal", str(value)]
    if is_number("fractions", "Fraction", value):
        return ["Fraction", value.numerator, value.denominator]
    raise TypeError(f"a {type(value).__name__} is not plain data")


def is_number(module, name, value):
    """Whether a value is a number of a module, if anybody has imported that."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def unpack(packed):
    """The value that was packed, of exact types; raises for anything else."""
    if not isinstance(packed, list):
        if isinstance(packed, dict):
            raise TypeError("an object of JSON is no packed value")
        return packed
    name, *parts = packed
    if name == "Decimal":
        from decimal import Decimal

        (text,) = parts
        return Decimal(text)
    if name == "Fraction":
        from fractions import Fraction

        above, below = parts  # whole numbers; a text could be a bomb
        return Fraction(above, below)
    if name == "dict":
        return {unpack(key): unpack(item) for key, item in parts}
    return KINDS[name](map(unpack, parts))


# --------------------------------------------------------------- the candidate's side


def answer_inputs(order: dict) -> None:
    """Define the function, call it with every input, write down what it gives.

    Args:
        order: ``programs`` in order of preference, the function's name as ``entry``,
            packed ``inputs``.
    """
    function = define_first(order["programs"], order["entry"])
    with open("defined", "w", encoding="utf-8"):
        pass
    answers = [pack(function(*unpack(one))) for one in order["inputs"]]
    with open("answers", "w", encoding="utf-8") as file:
        json.dump(answers, file)


def define_first(programs: list, entry: str):
    """The function ``entry`` of the first program that defines it.

    What fails behind the function does not matter: lines that use it.  If no program
    defines it, lines that are no Python are left out: prose, commands.
    """
    first = None
    for tidy in (str, keep_code):
        for program in programs:
            room = {"__name__": "solution"}
            try:
                tree = ast.parse(tidy(program))
                if not defines(tree, entry):
                    continue
                exec(compile(tree, "solution.py", "exec"), room)
            except BaseException as error:
                first = first or error
            if callable(room.get(entry)):
                return room[entry]
    raise first or NameError(f"no function {entry!r}")


def defines(tree: ast.Module, entry: str) -> bool:
    """Whether the program gives the name ``entry`` a meaning, however nested."""
    for node in ast.walk(tree):
        name = getattr(node, "name", None)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        if name == entry:
            return True
    return False


def keep_code(text: str) -> str:
    """Only what is Python, statement by statement from the margin on."""
    lines = text.split("\n")[:MOST_LINES]
    starts = [number for number, line in enumerate(lines) if begins(line)]
    ends, kept, at = [*starts[1:], len(lines)], [], 0
    while at < len(starts):
        for last in range(at, min(at + MOST_JOINED, len(starts))):
            piece = "\n".join(lines[starts[at] : ends[last]])
            try:
                statements = ast.parse(piece).body
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            if not all(isinstance(one, NO_CODE) for one in statements):
                kept.append(piece)
            at = last
            break
        at += 1
    return "\n".join(kept)


def begins(line: str) -> bool:
    """Whether a statement may begin with this line."""
    onwards = ("else", "elif", "except", "finally", ")", "]", "}")
    return bool(line.strip()) and line[0] not in " \t" and not line.startswith(onwards)


# -------------------------------------------------------------------- the judge's side


def answer(question: dict) -> dict:
    """What the judge says, as ``SandboxServer`` asks it.

    Args:
        question: the ``problem`` as its set has it; to be judged, also ``inputs``
            and the candidate's ``answers`` as the text that it wrote.

    Returns:
        ``inputs`` of all calls of the tests, packed; or ``passed`` and ``reason``.
    """
    problem = question["problem"]
    if "answers" not in question:
        return {"inputs": record_inputs(problem)}
    try:
        answers = list(map(unpack, json.loads(question["answers"])))
    except Exception as error:  # a candidate's text may be anything
        return {"passed": False, "reason": f"its answers are no data: {error}"[:200]}
    try:
        replay(problem, question["inputs"], answers)
    except Exception as error:
        said = f"{type(error).__name__}: {error}".strip(": ")
        return {"passed": False, "reason": f"a test failed: {said}"[:200]}
    return {"passed": True, "reason": "passes all tests"}


def record_inputs(problem: dict) -> list:
    """What the tests call the function with, while the authors' solution answers.

    Its answers cross the wall as well, so a problem whose tests need more than plain
    data raises here.
    """
    room, inputs = open_room(problem), []
    solution = room[problem["entry_point"]]

    def candidate(*arguments):
        inputs.append(pack(list(arguments)))  # before anything can change them
        return unpack(json.loads(json.dumps(pack(solution(*arguments)))))

    room["check"](candidate)
    return inputs


def replay(problem: dict, inputs: list, answers: list) -> None:
    """Run the tests on answers that were given before; raises where they fail."""
    given = iter(zip(inputs, answers, strict=True))

    def candidate(*arguments):
        asked, told = next(given)
        if pack(list(arguments)) != asked:
            raise RuntimeError("the test asks for other inputs than before")
        return told

    open_room(problem)["check"](candidate)


def open_room(problem: dict) -> dict:
    """The names that the tests see: their own, and the authors' program's."""
    random.seed(0)  # some tests draw their inputs
    room = {"__name__": "judge"}
    parts = ("prompt", "canonical_solution", "test")
    exec("".join(problem[part] + "\n" * (part != "prompt") for part in parts), room)
    return room
