"""What runs inside the sandbox: a student's definitions, on given inputs.

This folder stands alone and imports nothing of flowrl_lab: the process that runs it is
forked from one in which torch and this folder are all there is.  It knows no expected
value, no verdict and no points: it takes the definitions out of a submission's cells,
calls the functions that are asked for, and writes down what they returned.  Whoever
takes this process over has gained nothing.

Reads ``plan.json``; without jobs it writes what it found to ``found.json``, with jobs
one line each to ``outcomes.jsonl``, so that what was done before a time limit is not
lost.
"""

import ast
import json
import os
import random
import sys

from apart import Line, loss_of
from definitions import (
    TimeUp,
    builtin_name,
    define,
    limit,
    parse_cells,
    pick_definitions,
)
from values import decode, encode, literal, shortened


def place_of(error):
    """The last line of the submission that an error passed through, or ""."""
    place, step = "", error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if isinstance(name, str) and name.startswith("<cell "):
            place = f"line {int(step.tb_lineno)} of code {name[1:-1]}"
        step = step.tb_next
    return place[:60]


def run_job(job, names, torch, line):
    """One call of a student's function: what came out, or how it failed.

    Args:
        job: its function, its seconds, and its arguments, if it is no test.
        names: the namespace of ``define``.
        torch: the module.
        line: to whoever holds the loss, for a test.

    Returns:
        ``{"result": ...}``, ``{"verdict": ...}``, or ``{"problem": ...}``.
        Never raises.
    """
    function = names.get(job["function"])
    if not callable(function):
        return {"problem": "missing"}
    sow(torch)
    try:
        with limit(job["seconds"]):
            if "args" not in job:
                return run_own_test(function, loss_of(line))
            return {"result": shortened(run_call(job, function, torch))}
    except TimeUp:
        return {"problem": "time"}
    except MemoryError:
        return {"problem": "memory"}
    except BaseException as error:
        if is_unwritten(error):
            return {"problem": "not attempted"}
        return {"problem": builtin_name(error), "place": place_of(error)}


def sow(torch):
    """The same random numbers for every job, wherever they are drawn."""
    torch.manual_seed(0)
    random.seed(0)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(0)


def is_unwritten(error):
    """Whether an error is the one that a stub raises; torch's own have words."""
    return type(error) is NotImplementedError and not error.args


def run_call(job, function, torch):
    """Call a function on decoded arguments.

    Returns:
        Its encoded value, then the gradient of the value's sum by each argument whose
        place is in ``job["gradients"]``.  Raises whatever the function raises.
    """
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


def run_own_test(function, loss):
    """Run a student's test on one loss: does it find fault with it?

    Any error is a fault found, an AssertionError or another.

    Returns:
        The verdict, "accepted" or "rejected".

    Raises:
        TimeUp: the test took too long.
    """
    try:
        function(loss)
    except TimeUp:
        raise
    except BaseException as error:
        if is_unwritten(error):
            return {"problem": "not attempted"}
        return {"verdict": "rejected", "kind": builtin_name(error)}
    return {"verdict": "accepted"}


# ------------------------------------------------------------------------------ main


def main():
    """Read the plan, run the definitions, then one job after the other."""
    with open("plan.json", encoding="utf-8") as file:
        plan = json.load(file)
    os.unlink("plan.json")
    line = Line(os.dup(0), os.dup(1))
    # What a submission prints goes nowhere, however much it is.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    sys.setrecursionlimit(2000)
    import torch

    torch.set_num_threads(1)
    torch.compile = uncompiled  # there is no compiler here, and nothing to gain
    sys.modules["flowrl_lab"] = None  # write it yourself
    statements, problems = parse_cells(plan["cells"])
    kept = pick_definitions(statements, plan["literals"], plan["functions"])
    names, more, endless = define(kept, plan["seconds"], plan["skip"])
    if plan["jobs"]:
        run_jobs(plan["jobs"], names, torch, line)
    else:
        functions = [n.name for _, n in statements if isinstance(n, ast.FunctionDef)]
        functions += [name for name in plan["functions"] if callable(names.get(name))]
        found = {
            "functions": sorted(set(functions))[:200],
            "problems": [*problems, *more][:20],
            "literals": {
                n: shortened(encode(literal(names, n), torch)) for n in plan["literals"]
            },
            "endless": endless,
        }
        with open("found.json", "w", encoding="utf-8") as file:
            json.dump(found, file)
    os._exit(0)  # no exit handlers of the submission


def uncompiled(function=None, **_settings):
    """Instead of ``torch.compile``: the function as it is."""
    return function if function is not None else uncompiled


def run_jobs(jobs, names, torch, line):
    """One job after the other; one endless loop is enough."""
    late = False
    with open("outcomes.jsonl", "a", encoding="utf-8") as file:
        for job in jobs:
            outcome = {"problem": "time"} if late else run_job(job, names, torch, line)
            late = late or outcome.get("problem") == "time"
            file.write(json.dumps({"id": job["id"], **outcome}) + "\n")
            file.flush()
