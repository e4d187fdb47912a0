"""What runs inside the sandbox: a student's definitions, on given inputs.

This file stands alone; it is sent into the sandbox as text and imports nothing of
flowrl_lab.  It knows no expected value, no verdict and no points: it takes the
definitions out of a submission's cells, calls the functions that are asked for, and
writes down what they returned.  Whoever takes this process over has gained nothing.

Reads ``plan.json``; writes ``found.json`` first, then one line a job to
``outcomes.jsonl``, so that what was done before a time limit is not lost.
"""

import ast
import contextlib
import json
import math
import os
import signal
import sys
import types

MAX_NUMBERS = 200_000
MAX_TEXT = 2_000
# Calls that are safe and common in constants; anything else is not run at the top.
QUIET_CALLS = (
    *("math", "float", "int", "bool", "str", "set", "frozenset", "dict", "list"),
    *("tuple", "range", "len", "min", "max", "abs", "round", "sum", "sorted"),
)
QUIET_TORCH = ("tensor", "device", "arange", "zeros", "ones", "full", "log", "finfo")
STUB = "NotImplementedError"


class TimeUp(BaseException):
    """A job took longer than it may."""


# ------------------------------------------------------------------------ the cells


def strip_magics(source):
    """A cell without the lines that only a notebook understands."""
    lines = source.splitlines()
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("%%") and not first.startswith(("%%time", "%%capture")):
        return ""
    kept = []
    for line in lines:
        bare = line.lstrip()
        if bare.startswith(("%", "!", "?")) or bare.rstrip().endswith("?"):
            line = line[: len(line) - len(bare)] + "pass"
        kept.append(line)
    return "\n".join(kept)


def parse_cells(cells):
    """Statements of all cells in order, and what is wrong with which cell."""
    statements, problems = [], []
    for number, source in enumerate(cells, 1):
        try:
            tree = ast.parse(strip_magics(source), f"<cell {number}>")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None)
            where = f", line {line}" if line else ""
            problems.append(f"code cell {number} is not Python{where}")
            continue
        statements += [(number, statement) for statement in tree.body]
    return statements, problems


def is_stub(node):
    """Whether a function only refuses, as it was handed out."""
    body = [s for s in node.body if not is_docstring(s)]
    if len(body) != 1 or not isinstance(body[0], ast.Raise) or body[0].exc is None:
        return False
    return STUB in ast.unparse(body[0])


def is_docstring(statement):
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def is_quiet(value):
    """Whether an expression is a simple constant: no work, no effects."""
    for node in ast.walk(value):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            root, _, last = name.partition(".")
            known = root in QUIET_CALLS
            if not known and not (root == "torch" and last in QUIET_TORCH):
                return False
        loops = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.ListComp)
        if isinstance(node, (*loops, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
            return False
    return True


def assigned_names(statement):
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target] if statement.value is not None else []
    elif isinstance(statement, ast.Assign):
        targets = statement.targets
    else:
        return []
    names = [n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    plain = all(isinstance(t, ast.Name | ast.Tuple | ast.List) for t in targets)
    return [name.id for name in names] if plain else []


def pick_definitions(statements):
    """The statements to run: imports, definitions, constants; the last solved wins."""
    solved = {
        node.name
        for _, node in statements
        if isinstance(node, ast.FunctionDef) and not is_stub(node)
    }
    kept = []
    for number, node in statements:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            stub = isinstance(node, ast.FunctionDef) and is_stub(node)
            if not (stub and node.name in solved):  # a copy does not undo a solution
                kept.append((number, node))
        elif isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef) or (
            assigned_names(node) and is_quiet(node.value)
        ):
            kept.append((number, node))
    return kept


# ------------------------------------------------------------------- running them


class Absent(types.ModuleType):
    """Stands for a module that is not there; says so when it is used."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")

    def __call__(self, *_given, **_named):
        raise ImportError(f"{self.__name__} is not available when graded")


def run_import(node, names):
    """An import; what cannot be imported is replaced by a stand-in."""
    for alias in node.names:
        one = ast.Import([alias])
        if isinstance(node, ast.ImportFrom):
            one = ast.ImportFrom(node.module, [alias], node.level)
        try:
            run_statement(one, names)
        except BaseException as error:
            if isinstance(error, TimeUp):
                raise
            home = getattr(node, "module", None)
            full = f"{home}.{alias.name}" if home else alias.name
            short = alias.asname or alias.name.partition(".")[0]
            if alias.name != "*":
                names[short] = Absent(full)


def run_statement(node, names, filename="<import>"):
    module = ast.fix_missing_locations(ast.Module([node], []))
    exec(compile(module, filename, "exec"), names)


def define(kept, seconds):
    """Run the definitions, each on its own: a broken one does not stop the rest."""
    names = {"__name__": "submission"}
    problems = []
    for number, node in kept:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = [d for d in node.decorator_list if is_quiet(d)]
        try:
            with limit(seconds):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    run_import(node, names)
                else:
                    run_statement(node, names, f"<cell {number}>")
        except TimeUp:
            problems.append(f"a definition in code cell {number} never ended")
        except BaseException as error:
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                kind = builtin_name(error)
                problems.append(f"a definition in code cell {number} fails ({kind})")
    return names, problems


@contextlib.contextmanager
def limit(seconds):
    """Raise TimeUp inside the block when it has computed, or slept, too long."""

    def stop(_signal, _frame):
        signal.setitimer(signal.ITIMER_REAL, 0.05)  # again, should it be caught
        raise TimeUp

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # processor time: fair when busy
    signal.setitimer(signal.ITIMER_REAL, 4 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def builtin_name(error):
    """The error's type, if it is one of Python's own; never its words.

    A message could carry the inputs of a hidden test out into the feedback.
    """
    for kind in type(error).__mro__:
        if kind.__module__ == "builtins":
            return kind.__name__
    return "Exception"


def place_of(error):
    """The last line of the submission that an error passed through."""
    place, step = "", error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if isinstance(name, str) and name.startswith("<cell "):
            place = f"line {int(step.tb_lineno)} of code {name[1:-1]}"
        step = step.tb_next
    return place[:60]


def run_job(job, names, torch):
    """One call: what came out, or how it failed."""
    function = names.get(job["function"])
    if not callable(function):
        return {"problem": "missing"}
    torch.manual_seed(0)
    try:
        with limit(job["seconds"]):
            if "source" in job:
                return run_own_test(job, function)
            return {"result": run_call(job, function, torch)}
    except NotImplementedError:
        return {"problem": "not attempted"}
    except TimeUp:
        return {"problem": "time"}
    except MemoryError:
        return {"problem": "memory"}
    except BaseException as error:
        return {"problem": builtin_name(error), "place": place_of(error)}


def run_call(job, function, torch):
    args = [decode(value, torch) for value in job["args"]]
    named = {name: decode(value, torch) for name, value in job["kwargs"].items()}
    leaves = [args[place].requires_grad_() for place in job["gradients"]]
    value = function(*args, **named)
    result = [encode(value, torch)]
    for leaf in leaves:
        slope = None
        if isinstance(value, torch.Tensor) and value.requires_grad:
            total = value.sum()
            (slope,) = torch.autograd.grad(
                total, leaf, retain_graph=True, allow_unused=True
            )
        slope = torch.zeros_like(leaf) if slope is None else slope
        result.append(encode(slope, torch))
    return result


def run_own_test(job, function):
    """A student's test on one implementation: does it find fault with it?

    A test that asks for something else than an AssertionError has found a fault too.
    """
    home = {"__name__": "implementation"}
    exec(compile(job["source"], "<implementation>", "exec"), home)
    implementation = home["implementation"]
    try:
        function(implementation)
    except NotImplementedError:
        return {"problem": "not attempted"}
    except TimeUp:
        raise
    except BaseException as error:
        return {"verdict": "rejected", "kind": builtin_name(error)}
    return {"verdict": "accepted"}


# ------------------------------------------------------------------------- encoding


def encode(value, torch, depth=0):
    """As flowrl_lab.assignments.encoding, for whatever a student may return."""
    if depth > 6:
        return {"kind": "too deep"}
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        kind = str(value.dtype).removeprefix("torch.")
        if value.numel() > MAX_NUMBERS:
            return {"kind": "too large"}
        if value.dtype.is_floating_point:
            kind, value = "float64", value.double()
        elif kind != "bool":
            if value.dtype.is_complex:
                return {"kind": "complex"}
            kind, value = "int64", value.long()
        numbers = [plain(x) for x in value.flatten().tolist()]
        return {"tensor": kind, "shape": list(value.shape), "numbers": numbers}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)[:MAX_TEXT]
    if isinstance(value, int):
        return int(value) if abs(value) < 2**53 else {"kind": "a huge number"}
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {"number": str(number)}
    if hasattr(value, "tolist"):  # numpy
        return encode(torch.as_tensor(value.tolist()), torch, depth + 1)
    if isinstance(value, list | tuple):
        if len(value) > MAX_NUMBERS:
            return {"kind": "too large"}
        return [encode(part, torch, depth + 1) for part in value]
    if isinstance(value, dict):
        parts = list(value.items())[:1000]
        return {"dict": {str(k)[:80]: encode(v, torch, depth + 1) for k, v in parts}}
    return {"kind": type(value).__name__[:60]}


def plain(number):
    if isinstance(number, float) and not math.isfinite(number):
        return str(number)
    return number


def decode(stored, torch):
    if isinstance(stored, list):
        return [decode(part, torch) for part in stored]
    if not isinstance(stored, dict):
        return stored
    if "number" in stored:
        return float(stored["number"])
    if "dict" in stored:
        return {name: decode(part, torch) for name, part in stored["dict"].items()}
    numbers = [float(x) if isinstance(x, str) else x for x in stored["numbers"]]
    flat = torch.tensor(numbers, dtype=getattr(torch, stored["tensor"]))
    return flat.reshape(stored["shape"])


def literal(names, name):
    """The value that a submission gives to a constant."""
    value = names.get(name)
    good = isinstance(value, bool | int | float | str | list | tuple | set)
    return (
        sorted(map(str, value)) if isinstance(value, set) else value if good else None
    )


# ------------------------------------------------------------------------------ main


def main():
    with open("plan.json", encoding="utf-8") as file:
        plan = json.load(file)
    # What a submission prints goes nowhere, however much it is.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    sys.setrecursionlimit(2000)
    import torch

    torch.set_num_threads(1)
    sys.modules["flowrl_lab"] = None  # write it yourself
    statements, problems = parse_cells(plan["cells"])
    kept = pick_definitions(statements)
    names, more = define(kept, plan["seconds"])
    functions = [n.name for _, n in statements if isinstance(n, ast.FunctionDef)]
    found = {
        "functions": sorted(set(functions))[:200],
        "problems": [*problems, *more][:20],
        "literals": {n: encode(literal(names, n), torch) for n in plan["literals"]},
    }
    with open("found.json", "w", encoding="utf-8") as file:
        json.dump(found, file)
    endless = set()  # one endless loop a function is enough
    with open("outcomes.jsonl", "a", encoding="utf-8") as file:
        for job in plan["jobs"]:
            outcome = {"problem": "time"}
            if job["function"] not in endless:
                outcome = run_job(job, names, torch)
            if outcome.get("problem") == "time":
                endless.add(job["function"])
            file.write(json.dumps({"id": job["id"], **outcome}) + "\n")
            file.flush()
    os._exit(0)  # no exit handlers of the submission


if __name__ == "__main__":
    main()
