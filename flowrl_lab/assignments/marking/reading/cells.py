"""From a notebook's cell to Python, as the student's own notebook turned it.

Part of the reader: stands alone, imports nothing of flowrl_lab.  What is Python as it
stands is not touched.  Anything else goes through IPython's own transformations; then
the calls that only a notebook can answer are taken out, and named.
"""

import ast
import contextlib
import re
import signal

# Cell magics whose body is no Python of this notebook.
OTHER_LANGUAGES = (
    *("!", "bash", "cmd", "cython", "file", "html", "javascript", "js", "julia"),
    *("latex", "markdown", "perl", "powershell", "pypy", "python", "python2"),
    *("python3", "r", "ruby", "script", "sh", "sql", "svg", "sx", "system"),
    "writefile",
)
# Line magics that run the statement behind them.
RUNS_THE_REST = ("time", "prun")
# What IPython takes for a magic without a sign, in a cell of one line.
WITHOUT_A_SIGN = re.compile(r"(pip|conda|cd|ls|pwd|cat|clear|mkdir|matplotlib)\b")
MAX_NESTED = 5
SHOWN = 80


class TooLong(Exception):
    """A cell takes too long to be turned into Python."""


@contextlib.contextmanager
def limit(seconds):
    """Raise ``TooLong`` inside the block after so much processor time."""

    def stop(_signal, _frame):
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def to_python(source, seconds):
    """Turn a cell into Python.

    Args:
        source: the cell's text.
        seconds: of processor time that it may take.

    Returns:
        The Python text, "" if there is none; the lines that were left out, as (line
        from 1, text, whether it stands inside a definition); and what is wrong, "" if
        nothing is.
    """
    try:
        with limit(seconds):
            plain = re.sub("\r\n?", "\n", source)  # as Python itself reads them
            return _turn(plain.removeprefix("\ufeff"), 0)
    except TooLong:
        return "", [], "takes too long to read"
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        most = source.count("\n") + 1
        where = f", line {min(int(line), most)}" if line else ""
        return "", [], f"is not Python{where}"
    except ImportError:
        raise
    except Exception:  # whatever IPython raises, the other cells are kept
        return "", [], "is not Python"


def _turn(source, depth):
    lines = source.split("\n")
    first = next((n for n, line in enumerate(lines) if line.strip()), 0)
    if lines[first].lstrip().startswith("%%") and depth < MAX_NESTED:
        return _turn_cell_magic(lines, first, depth)
    try:
        tree = ast.parse(source)
    except SyntaxError:
        if len(source.split("\n")) - first == 1 and WITHOUT_A_SIGN.match(lines[first]):
            return "", [(first + 1, lines[first][:SHOWN], False)], ""
        from IPython.core.inputtransformer2 import TransformerManager

        source = TransformerManager().transform_cell(source)
        tree = ast.parse(source)
    if "get_ipython" not in source:
        return source, [], ""
    return (*_without_shell(source, tree), "")


def _turn_cell_magic(lines, first, depth):
    """A cell magic goes; its body stays where it is Python of this notebook."""
    name = re.match(r"[^\s]*", lines[first].strip()[2:])[0]
    gone = (first + 1, lines[first].strip()[:SHOWN], False)
    if name.lower() in OTHER_LANGUAGES:
        return "", [gone], ""
    body = "\n".join([*([""] * (first + 1)), *lines[first + 1 :]])
    text, left_out, problem = _turn(body, depth + 1)
    return text, [gone, *left_out], problem


def _without_shell(source, tree):
    """The source without calls of ``get_ipython()``, and what they were."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    alone = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    rows = [line.encode() for line in source.split("\n")]
    left_out = []
    found = [node for node in ast.walk(tree) if _is_shell_call(node)]
    for node in sorted(found, key=lambda n: (n.lineno, n.col_offset), reverse=True):
        if node.end_lineno != node.lineno:  # written by hand; it stays as it is
            continue
        words, instead = _in_words(node, id(node) in alone)
        row = rows[node.lineno - 1]
        put = row[: node.col_offset] + instead.encode() + row[node.end_col_offset :]
        rows[node.lineno - 1] = put
        if words:
            left_out.append((node.lineno, words[:SHOWN], id(node) in inside))
    text = b"\n".join(rows).decode()
    ast.parse(text)
    return text, left_out[::-1]


def _is_shell_call(node):
    """Whether a node is ``get_ipython().something(...)``."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    shell = node.func.value
    name = shell.func if isinstance(shell, ast.Call) else None
    return isinstance(name, ast.Name) and name.id == "get_ipython"


def _in_words(node, alone):
    """What a call was in the notebook ("" if it is still run), and what stands now."""
    texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
    texts = [text for text in texts if isinstance(text, str)]
    kind = node.func.attr
    if kind == "run_line_magic" and len(texts) == 2:
        name, rest = texts
        timed = _to_run(rest, alone) if name in RUNS_THE_REST else ""
        if timed:
            return "", timed
        if name.startswith("pinfo"):
            return f"{rest}{'??' if name == 'pinfo2' else '?'}", "None"
        return f"%{name} {rest}".rstrip(), "None"
    if kind in ("getoutput", "system") and texts:
        return f"!{texts[0]}", "[]" if kind == "getoutput" else "None"
    return f"get_ipython().{kind}(...)", "None"


def _to_run(text, alone):
    """A text as simple statements, or as one expression; "" if it is neither.

    Without its comment and last semicolon, which would take along what stands behind.
    """
    try:
        body = ast.parse(text.strip()).body
        rows = [ast.unparse(node) for node in body]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    if alone:
        return "" if any("\n" in row for row in rows) else "; ".join(rows)
    one = len(body) == 1 and isinstance(body[0], ast.Expr)
    return f"({rows[0]})" if one else ""
