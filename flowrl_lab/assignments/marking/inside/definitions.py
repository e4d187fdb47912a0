"""From a submission's cells to a namespace: what is run, and what is left out.

Part of the worker: runs inside the sandbox, stands alone, imports nothing of
flowrl_lab.  Nothing at the top of a cell is run but imports, definitions, constants,
and what the functions that are asked for need.
"""

import __future__

import ast
import contextlib
import os
import signal
import symtable
import sys
import types

# Calls that are safe and common in constants; anything else is not run at the top.
QUIET_CALLS = (
    *("math", "float", "int", "bool", "str", "set", "frozenset", "dict", "list"),
    *("tuple", "range", "len", "min", "max", "abs", "round", "sum", "sorted"),
)
QUIET_TORCH = ("tensor", "device", "arange", "zeros", "ones", "full", "log", "finfo")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Methods that change what they are called on, as do torch's with _ at their end.
CHANGERS = (
    *("append", "extend", "insert", "update", "add", "setdefault", "remove"),
    *("discard", "pop", "clear", "sort", "reverse", "load_state_dict"),
)
STUB = "NotImplementedError"
# Annotations are never evaluated: they may name what is not there when graded.
FLAGS = __future__.annotations.compiler_flag
# So often may a job catch the signal that its time is up; then its process ends.
MAX_CAUGHT = 20


class TimeUp(BaseException):
    """A job took longer than it may."""


# ------------------------------------------------------------------------ the cells


def parse_cells(cells):
    """Parse the code cells of a submission, which are Python already.

    Returns:
        Pairs of a cell's number (from 1) and a statement (``ast.stmt``), in order; and
        texts that say which cell is not Python.  Such a cell costs only itself.
    """
    statements, problems = [], []
    for number, source in enumerate(cells, 1):
        try:
            tree = ast.parse(source, f"<cell {number}>")
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
    """Whether a statement is a constant that stands for itself."""
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
    """Names that a plain assignment sets; none for ``a[0] = 1`` or ``a.b = 1``."""
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target] if statement.value is not None else []
    elif isinstance(statement, ast.Assign):
        targets = statement.targets
    else:
        return []
    names = [n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    plain = all(isinstance(t, ast.Name | ast.Tuple | ast.List) for t in targets)
    return [name.id for name in names] if plain else []


def is_blank(node, asked):
    """Whether a statement is the blank of a number, ``NAME = None``, as handed out."""
    names = assigned_names(node)
    empty = names and isinstance(node.value, ast.Constant) and node.value.value is None
    return bool(empty) and set(names) <= set(asked)


def bound_names(node):
    """Names that a statement binds, or changes something of, where it stands."""
    names, waiting = set(), [node]
    while waiting:  # not by recursion: a long sum is a deep tree
        part = waiting.pop()
        if isinstance(part, DEFINITIONS):
            names.add(part.name)
        elif isinstance(part, ast.alias):
            names.add(part.asname or part.name.partition(".")[0])
        elif isinstance(getattr(part, "ctx", None), ast.Store):
            names.add(root_name(part))
        elif isinstance(part, ast.Expr):
            names.add(changed_name(part.value))
        if not isinstance(part, (*DEFINITIONS, ast.Lambda)):
            waiting += ast.iter_child_nodes(part)
    return names - {""}


def root_name(node):
    """The name that ``a.b[c].d`` begins with, or ""."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def changed_name(value):
    """The name that ``a.append(1)`` or ``a.b.fill_(0)`` changes something of, or ""."""
    method = value.func if isinstance(value, ast.Call) else None
    if not isinstance(method, ast.Attribute):
        return ""
    in_place = method.attr.endswith("_") and not method.attr.endswith("__")
    return root_name(method) if in_place or method.attr in CHANGERS else ""


def called_names(node, setters):
    """Names that a call at the margin sets by ``global``."""
    called = node.value if isinstance(node, ast.Expr) else None
    simple = isinstance(called, ast.Call) and isinstance(called.func, ast.Name)
    return setters.get(called.func.id, set()) if simple else set()


def global_names(function):
    """Names of the module that a call of a function sets."""
    parts = [part for part in ast.walk(function) if isinstance(part, ast.Global)]
    return {name for part in parts for name in part.names}


def used_names(node):
    """Names of the module that a statement looks up, at once or when it is called."""
    try:
        top = symtable.symtable(ast.unparse(node), "<cell>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names, waiting = set(), [top]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        names |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (table is top or symbol.is_global())
        }
    return names


def find_needed(statements, wanted):
    """Places of the statements that make what is wanted, or what these need."""
    binds = [bound_names(node) for _, node in statements]
    setters = {
        node.name: global_names(node)
        for _, node in statements
        if isinstance(node, ast.FunctionDef)
    }
    imported = {
        name
        for names, (_, node) in zip(binds, statements, strict=True)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in names
    }
    for place, (_, node) in enumerate(statements):
        if isinstance(node, ast.Expr):  # it changes nothing of a module for others
            binds[place] = binds[place] - imported | called_names(node, setters)
    needed, places = set(wanted), set()
    while True:
        fresh = {
            place
            for place, names in enumerate(binds)
            if place not in places and names & needed
        }
        if not fresh:
            return places
        places |= fresh
        needed = needed.union(*(used_names(statements[place][1]) for place in fresh))


def pick_definitions(statements, asked=(), wanted=()):
    """The statements to run; the last solved wins.

    Imports, definitions and constants, and of the others those that the functions
    which are asked for need: a global batch, ``f = partial(g, 2)``, a ``try``.

    Args:
        statements: pairs of a cell's number and a statement.
        asked: names of the numbers that the assignment asks for.
        wanted: names of the functions that it asks for.

    Returns:
        The pairs to run, in order.  A copy of a stub, or of a number's blank, does
        not undo an answer.
    """
    needed = find_needed(statements, {*asked, *wanted})
    solved = {
        name
        for place, (_, node) in enumerate(statements)
        if (place in needed or isinstance(node, ast.FunctionDef))
        and not (isinstance(node, ast.FunctionDef) and is_stub(node))
        for name in bound_names(node)
    }
    given = {
        name
        for _, node in statements
        if not is_blank(node, asked)
        for name in assigned_names(node)
    }
    kept = []
    for place, (number, node) in enumerate(statements):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            stub = isinstance(node, ast.FunctionDef) and is_stub(node)
            if not (stub and node.name in solved):
                kept.append((number, node))
        elif is_blank(node, asked) and set(assigned_names(node)) <= given:
            continue
        elif (
            place in needed
            or isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef)
            or (assigned_names(node) and is_quiet(node.value))
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
    """Run an import; what cannot be imported is replaced by an :class:`Absent`.

    Raises:
        TimeUp: the module takes too long.
    """
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
    """Run one ``ast.stmt`` in the namespace ``names``; raises what it raises."""
    module = ast.fix_missing_locations(ast.Module([node], []))
    exec(compile(module, filename, "exec", FLAGS), names)


def run_function(node, names, filename):
    """Define a function; without its decorators where these fail.

    They may want its source, a compiler, or a package that is not there.
    """
    try:
        run_statement(node, names, filename)
        works = callable(names.get(node.name))
    except Exception:
        works = False
    if not works:
        node.decorator_list = []
        run_statement(node, names, filename)


def define(kept, seconds, skip=()):
    """Run the definitions, each on its own: a broken one does not stop the rest.

    Args:
        kept: what ``pick_definitions`` gave.
        seconds: of processor time for each.
        skip: places of those that are left out, because they never ended before.

    Returns:
        The namespace with everything defined, texts that say what failed, and the
        places of those that never ended.
    """
    home = types.ModuleType("__main__")  # as in a notebook
    sys.modules["__main__"] = home  # dataclasses and type hints look for it there
    names = vars(home)
    problems, endless = [], []
    for place, (number, node) in enumerate(kept):
        if place in skip:
            continue
        try:
            with limit(seconds):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    run_import(node, names)
                elif isinstance(node, ast.FunctionDef):
                    run_function(node, names, f"<cell {number}>")
                else:
                    run_statement(node, names, f"<cell {number}>")
        except TimeUp:
            problems.append(f"a definition in code cell {number} never ended")
            endless.append(place)
        except BaseException as error:
            if isinstance(node, DEFINITIONS):
                kind = builtin_name(error)
                problems.append(f"a definition in code cell {number} fails ({kind})")
    return names, problems, endless


@contextlib.contextmanager
def limit(seconds):
    """Raise TimeUp inside the block when it has computed, or slept, too long.

    Args:
        seconds: of processor time; on the clock it may take four times as long.
    """
    caught = 0

    def stop(_signal, _frame):
        nonlocal caught
        caught += 1
        if caught > MAX_CAUGHT:  # it means to stay: end the process with it
            os.kill(os.getpid(), signal.SIGKILL)
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
    """The name of an error's type, if it is one of Python's own; never its words.

    A message could carry the inputs of a hidden test out into the feedback.
    """
    for kind in type(error).__mro__:
        if kind.__module__ == "builtins":
            return kind.__name__
    return "Exception"
