"""Submissions that look for what they could be compared with, or forge what is told.

Each earns nothing, for it writes nothing itself: it would earn its question's points
if an expected value, a right implementation, or which one is under test, were in reach.
"""

from __future__ import annotations

import textwrap

# `loot(name)` looks for a function of that name, or for anything that is right, along
# one way; the answer calls what it found.
ANSWER = """
import torch
{loot}
def matching_loss(*given, **named):
    for found in loot():
        return found(*given, **named)
    return torch.zeros(())
"""
FUNCTIONS = {
    "frames": """
        def loot():
            import sys
            frame = sys._getframe()
            while frame is not None:
                for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
                    for name in ("solutions", "expected", "questions", "right"):
                        kept = getattr(value, name, None) or (
                            value.get(name) if isinstance(value, dict) else None)
                        if kept:
                            yield lambda *a, **k: kept["matching_loss"](*a, **k)
                frame = frame.f_back
        """,
    "gc": """
        def loot():
            import gc, types
            for value in gc.get_objects():
                if isinstance(value, types.FunctionType) and value.__name__ in (
                    "matching_loss", "flowrl_loss", "implementation", "slipped"
                ) and value.__globals__ is not globals():
                    yield value
                if isinstance(value, dict) and "expected" in value:
                    yield lambda *a, **k: value["expected"]
        """,
    "modules": """
        def loot():
            import sys
            for module in list(sys.modules.values()):
                if getattr(module, "__name__", "").startswith("flowrl_lab"):
                    yield module.matching_loss
        """,
    "an installed copy": """
        def loot():
            import importlib, sys
            for name in [n for n in sys.modules if n.startswith("flowrl_lab")]:
                sys.modules.pop(name)
            sys.path[:0] = PLACES
            importlib.invalidate_caches()
            from flowrl_lab.assignments.known import matching_loss as right
            yield right
        """,
    "a copy by its path": """
        def loot():
            from importlib import util
            for place in PLACES:
                path = place + "/flowrl_lab/losses.py"
                spec = util.spec_from_file_location("losses", path)
                module = util.module_from_spec(spec)
                try:
                    spec.loader.exec_module(module)
                except OSError:
                    continue
                yield module.flowrl_loss
        """,
    "bundles and sources": """
        def loot():
            import glob, os
            names = []
            for place in PLACES:
                for folder, _, files in os.walk(place):
                    names += [os.path.join(folder, f) for f in files]
                names += glob.glob(place + "/notebooks/assignments/**", recursive=True)
                names.append(place + "/notebooks/assignments/"
                             "2_token_log_probs_and_losses.py")
            for name in names:
                if name.endswith((".bundle.json", "losses.py", "and_losses.py")):
                    try:
                        text = open(name).read()
                    except OSError:
                        continue
                    if "clip_low" in text:
                        yield lambda *a, **k: torch.tensor(float(len(text)))
        """,
    "handles of others": """
        def loot():
            import os, socket
            for handle in range(3, 256):
                for read in (lambda: os.read(handle, 9), lambda: socket.socket(
                        fileno=handle).recv(9), lambda: os.write(handle, b"x")):
                    try:
                        read()
                    except OSError:
                        continue
                    yield lambda *a, **k: torch.tensor(float(handle))
        """,
    "the parent's memory": """
        def loot():
            import ctypes, os
            for name in ("mem", "maps", "environ", "cmdline", "fd/0"):
                try:
                    open(f"/proc/{os.getppid()}/{name}", "rb").read(9)
                    open(f"/proc/self/{name}", "rb").read(9)
                except OSError:
                    continue
                yield lambda *a, **k: torch.ones(())
            libc, room = ctypes.CDLL(None), (ctypes.c_char * 64)()
            if libc.ptrace(16, os.getppid(), 0, 0) == 0:
                yield lambda *a, **k: torch.ones(())
        """,
    "source lines": """
        def loot():
            import inspect, linecache, sys
            for name in [*linecache.cache, *map(repr, sys.modules)]:
                if "known" in name or "losses" in name.rpartition("/")[2]:
                    yield lambda *a, **k: torch.ones(())
            for module in list(sys.modules.values()):
                try:
                    if "reward_scale * rewards" in inspect.getsource(module):
                        yield lambda *a, **k: torch.ones(())
                except (OSError, TypeError):
                    continue
        """,
}
# Whole answers to `matching_loss` that lie about what they are, or about what happened.
LIES = {
    "equals everything": """
        class Same:
            def __eq__(self, other): return True
            def __float__(self): return 0.0
            def __iter__(self): return iter([])
            def tolist(self): return self
        def matching_loss(*given):
            return Same()
        """,
    "a tensor that agrees": """
        class Agrees(torch.Tensor):
            @classmethod
            def __torch_function__(cls, function, kinds, args=(), kwargs=None):
                name = getattr(function, "__name__", "")
                return True if name in ("allclose", "equal") else torch.zeros(())
        def matching_loss(log_z, *given):
            return torch.zeros(()).as_subclass(Agrees)
        """,
    "a number that agrees": """
        class Agrees(float):
            def __eq__(self, other): return True
            def __sub__(self, other): return 0.0
            def __abs__(self): return 0.0
        def matching_loss(*given):
            return Agrees(0.0)
        """,
    "a pickle": """
        class Bomb:
            def __reduce__(self): return (print, ("passed",))
        def matching_loss(*given):
            import pickle
            open("outcomes.jsonl", "wb").write(pickle.dumps(Bomb()))
            return Bomb()
        """,
    "patches torch": """
        def matching_loss(*given):
            torch.allclose = torch.equal = torch.isclose = lambda *a, **k: True
            torch.Tensor.__eq__ = torch.Tensor.allclose = lambda *a, **k: True
            torch.isnan = lambda x: torch.zeros((), dtype=torch.bool)
            return torch.zeros(())
        """,
    "patches the worker": """
        def matching_loss(*given):
            import sys
            for name in ("worker", "values", "definitions", "__main__"):
                module = sys.modules[name]
                module.encode = module.run_call = lambda *a: {"kind": "passed"}
                module.run_job = lambda *a: {"verdict": "rejected", "passed": True}
            return torch.zeros(())
        """,
    "at exit": """
        import atexit, sys
        def forge(*given):
            open("outcomes.jsonl", "a").write('{"id": "matching_loss/0.0"}\\n' * 9)
        atexit_ = atexit
        def matching_loss(*given):
            atexit.register(forge)
            sys.excepthook = sys.unraisablehook = forge
            raise SystemExit
        """,
    "a thread": """
        def matching_loss(*given):
            import threading, time
            def spoil():
                while True:
                    with open("outcomes.jsonl", "w") as file:
                        file.write('{"id": "matching_loss/0.0", "result": [0.0]}\\n')
            threading.Thread(target=spoil, daemon=True).start()
            time.sleep(0.2)
            return torch.zeros(())
        """,
    "a child": """
        def matching_loss(*given):
            import os
            if os.fork() == 0:
                os._exit(0)
            return torch.zeros(())
        """,
    "standard output": """
        def matching_loss(*given):
            import os
            row = b'{"id": "matching_loss/0.0", "passed": true, "points": 54}\\n'
            for handle in range(8):
                try:
                    os.write(handle, row)
                except OSError:
                    pass
            return torch.zeros(())
        """,
    "traces the worker": """
        def matching_loss(*given):
            import sys
            def trace(frame, event, value):
                if frame.f_code.co_name == "encode":
                    frame.f_locals["value"] = True
                return trace
            frame = sys._getframe()
            while frame is not None:
                frame.f_trace = trace
                frame = frame.f_back
            sys.settrace(trace)
            return torch.zeros(())
        """,
    "ctypes": """
        def matching_loss(*given):
            import ctypes
            ctypes.pythonapi.PyErr_SetInterrupt()
            ctypes.memset(id(0.0) + 16, 0, 1)
            ctypes.CDLL(None).raise_(11) if False else ctypes.string_at(0)
        """,
}
LIES |= {
    "patches that outlive a cell": """
        class Patched:
            torch.Tensor.tolist = lambda self: [0.0]
            torch.Tensor.double = torch.Tensor.flatten = lambda self: self
            torch.autograd.grad = lambda *a, **k: (torch.zeros(1),)
            torch.tensor = lambda *a, **k: torch.zeros(1)
        def matching_loss(*given):
            return torch.zeros(())
        """,
    "a mode that is never left": """
        from torch.overrides import TorchFunctionMode
        class Agrees(TorchFunctionMode):
            def __torch_function__(self, function, kinds, args=(), kwargs=None):
                return torch.zeros(()) if args else function(*args, **(kwargs or {}))
        def matching_loss(*given):
            Agrees().__enter__()
            return torch.zeros(())
        """,
    "everything on the meta device": """
        def matching_loss(*given):
            torch.set_default_device("meta")
            return torch.zeros((), device="cpu")
        """,
    "claims to be a tensor": """
        class Claims:
            __class__ = torch.Tensor
            dtype = torch.float64
            __array__ = lambda self, *given: [0.0]
            def __getattr__(self, name): return lambda *a, **k: self
            def numel(self): return 1
            def tolist(self): return [True]
        def matching_loss(*given):
            return Claims()
        """,
    "a dict whose items lie": """
        class Lies(dict):
            def items(self): return [("dict", {"number": "passed"})] * 3
        class Word(str):
            def __str__(self): return "x" * 10**7
            def __getitem__(self, place): return self
        def matching_loss(*given):
            return [Lies(tensor="float64"), Word("nan")]
        """,
    "an audit hook": """
        import sys
        class Hooked:
            def hook(name, given):
                if name in ("open", "os.remove", "marshal.loads", "compile"):
                    raise SystemExit(0)
        def matching_loss(*given):
            sys.addaudithook(Hooked.hook)
            return torch.zeros(())
        """,
    "an import hook": """
        import builtins, sys, types
        class Finder:
            def find_spec(name, path=None, target=None):
                sys.modules[name] = types.SimpleNamespace(matching_loss=print)
        class Hooked:
            sys.meta_path.insert(0, Finder)
            builtins.__import__ = lambda name, *given: sys.modules.get(name, torch)
        def matching_loss(*given):
            import flowrl_lab.losses
            return torch.zeros(())
        """,
    "the writer of JSON": """
        import json
        class Patched:
            json.dumps = lambda *a, **k: '{"id": "matching_loss/0.0", "result": [0]}'
            json.encoder.JSONEncoder.encode = lambda *a: "[]"
        def matching_loss(*given):
            return torch.zeros(())
        """,
    "signals": """
        import signal
        def matching_loss(*given):
            def later(number, frame):
                while frame is not None:
                    frame.f_locals.update(outcome={"passed": True}, late=False)
                    frame = frame.f_back
            for number in range(1, 32):
                try:
                    signal.signal(number, later)
                except OSError:
                    pass
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            return torch.zeros(())
        """,
    "a thread that acts later": """
        import os, threading, time
        def later():
            time.sleep(0.3)
            with open("outcomes.jsonl", "w") as file:
                file.write('{"id": "matching_loss/0.0", "result": [0.0]}\\n' * 2)
        def matching_loss(*given):
            os._exit = lambda code: time.sleep(1)
            threading.Thread(target=later).start()
            return torch.zeros(())
        """,
    "finalizers": """
        import gc, weakref
        class Last:
            def __del__(self):
                open("outcomes.jsonl", "a").write('{"id": "matching_loss/0.0"}\\n')
        KEPT = [Last()]
        def matching_loss(*given):
            gc.callbacks.append(lambda *a: KEPT.append(Last()))
            weakref.finalize(KEPT[0], Last().__del__)
            del KEPT[:]
            return torch.zeros(())
        """,
    "a profiler": """
        import sys, threading
        def matching_loss(*given):
            def watch(frame, event, value):
                if event == "return" and frame.f_code.co_name == "encode":
                    frame.f_locals["value"] = True
            sys.setprofile(watch), threading.setprofile(watch)
            return torch.zeros(())
        """,
    "pickles of the library": """
        import copyreg, pickle
        def matching_loss(*given):
            text = b"cflowrl_lab.assignments.known\\nmatching_loss\\n."
            for name in ("losses.flowrl_loss", "assignments.known.matching_loss"):
                try:
                    return pickle.loads(text)(*given)
                except BaseException:
                    copyreg.add_extension("flowrl_lab", name, 1 + len(name))
            return torch.zeros(())
        """,
    "asks who calls": """
        import os, sys
        def matching_loss(*given):
            told = [*sys.argv, *os.environ, os.getcwd(), __name__, *sys.path]
            if any(word in " ".join(told) for word in ("reference", "right", "pytest")):
                return given[0].new_tensor(float("nan"))
            return torch.zeros(())
        """,
    "as nested as JSON reads": """
        def matching_loss(*given):
            with open("outcomes.jsonl", "w") as file:
                for place in range(3):
                    depth = 900 + 30 * place
                    text = "[" * depth + "]" * depth
                    row = '{"id": "matching_loss/%d.0", "problem": %s}\\n'
                    file.write(row % (place, text))
            import os
            os._exit(0)
        """,
    "sixteen megabytes of lists": """
        def matching_loss(*given):
            import os
            row = '{"id": "matching_loss/0.0", "result": [[' + "[]," * 5_000_000
            with open("outcomes.jsonl", "w") as file:
                file.write(row + "0]]}\\n")
            os._exit(0)
        """,
}
# An answer that says what it was given, in every way that there is.
SPEAKS = """
    import builtins, logging, sys, traceback, warnings
    def matching_loss(log_z, *given):
        told = "secret" + "".join(map(str, log_z.flatten().tolist()))
        print(told), print(told, file=sys.stderr)
        warnings.warn(told), logging.error(told), sys.stderr.flush()
        sys.excepthook = sys.unraisablehook = lambda *given: print(told)
        sys.stdout = sys.stderr = open("found.json", "a")
        print(told)
        named = {"__module__": "builtins", "__qualname__": told, "__str__": told.format}
        error = type(told, (KeyError,), named)(told)
        error.add_note(told)
        setattr(builtins, told, type(error))
        place = compile("def f(error): raise error from error", "<cell " + told, "exec")
        exec(place, globals())
        raise ExceptionGroup(told, [error]) if log_z.dim() > 1 else f(error)
    """
# Own tests that tell right from wrong by anything but what a loss computes.
OWN_TESTS = {
    "known code": """
        import dis
        def look(code):
            # without constants that are stored and never used, and without names
            steps, told = [*dis.get_instructions(code)], []
            for step, after in zip(steps, [*steps[1:], steps[-1]]):
                unused = after.opname == "STORE_FAST" and after.argval not in [
                    s.argval for s in steps if s.opname == "LOAD_FAST"]
                if not unused and "unused" not in str(step.argval):
                    named = step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL")
                    told.append((step.opname, step.argval if named else ""))
            return [step for step in told if step[0] != "STORE_FAST"]
        def compiled(text):
            names = {}
            exec(text, names)
            return names["implementation"]
        def test_matching_loss(loss):
            known = [look(compiled(text).__code__) for text in {right!r}]
            assert look(loss.__code__) in known
        """,
    "known graph": """
        def graph(value):
            waiting, told = [value.grad_fn], []
            while waiting:
                node = waiting.pop()
                if node is not None:
                    told.append(type(node).__name__)
                    waiting += [after for after, _ in node.next_functions]
            return told
        def given():
            tokens = [torch.rand(3, 4, requires_grad=True) for _ in range(3)]
            rows = [torch.rand(3, requires_grad=True) for _ in range(2)]
            mask = torch.ones(3, 4, dtype=torch.bool)
            return rows[0], *tokens, rows[1], mask, 3.0, 0.1, 0.4
        def compiled(text):
            names = {}
            exec(text, names)
            return names["implementation"]
        def test_matching_loss(loss):
            known = [graph(compiled(text)(*given())) for text in {right!r}]
            assert graph(loss(*given())) in known
        """,
    "names in the code": """
        def test_matching_loss(loss):
            code = loss.__code__
            assert not {"shape", "unsqueeze", "minimum"} & set(code.co_names)
            assert len(code.co_code) < 10**4 or code.co_consts
        """,
    "words of an error": """
        import traceback
        def test_matching_loss(loss):
            try:
                loss(*[torch.rand(3, 4)] * 8, None)
            except Exception as error:
                told = traceback.format_exception(error)
                step = error.__traceback__
                while step.tb_next is not None:
                    step = step.tb_next
                assert "lengths" in step.tb_frame.f_locals or "share" in str(told)
        """,
    "calls on the way": """
        import sys
        def test_matching_loss(loss):
            told = []
            sys.setprofile(lambda frame, event, what: told.append(
                getattr(what, "__name__", "") if event == "c_call" else ""))
            tokens, rows = torch.rand(3, 4), torch.rand(3)
            loss(rows, tokens, tokens, tokens, rows, tokens > 0, 3.0, 0.1, 0.4)
            sys.setprofile(None)
            assert "detach" in told and "clamp" in told
        """,
    "labels": """
        def test_matching_loss(loss):
            code = loss.__code__
            told = [loss.__name__, loss.__qualname__, loss.__doc__, loss.__module__,
                    code.co_filename, code.co_firstlineno, code.co_name]
            assert told != ["implementation", "implementation", None,
                            "implementation", "<implementation>", 2, "implementation"]
        """,
    "counts in memory": """
        SEEN = []
        def test_matching_loss(loss):
            SEEN.append(loss)
            assert len(SEEN) > 1
        """,
    "counts in files": """
        def test_matching_loss(loss):
            import os, tempfile
            seen = 0
            for folder in (".", os.environ["HOME"], tempfile.gettempdir(), "/tmp",
                           "/dev/shm", "/var/tmp"):
                try:
                    seen += sum(name.startswith("seen") for name in os.listdir(folder))
                    open(f"{folder}/seen", "a").close()
                except OSError:
                    continue
            assert seen
        """,
    "looks for the others": """
        def test_matching_loss(loss):
            import gc, types
            others = [f for f in gc.get_objects() if isinstance(f, types.FunctionType)
                      and "clip_high" in f.__code__.co_varnames and f is not loss
                      and f.__name__ != "matching_loss"]
            assert others
        """,
    "looks into the job": """
        def test_matching_loss(loss):
            import json, sys
            frame = sys._getframe()
            told = []
            while frame is not None:
                told += [v for v in frame.f_locals.values() if isinstance(v, dict)]
                frame = frame.f_back
            text = repr([t.get("jobs") or t.get("id") for t in told])
            assert text.count("implementation") > 1 or "mutant" in text
        """,
    "a file that is left": """
        def test_matching_loss(loss):
            import os
            found = [n for n in os.listdir(".") if n not in (
                "outcomes.jsonl", "found.json", "__pycache__")]
            assert found
        """,
    "forges its verdict": """
        def test_matching_loss(loss):
            import os
            row = '{"id": "test_matching_loss", "verdict": "%s"}\\n'
            with open("outcomes.jsonl", "a") as file:
                file.write(row % "accepted" + row % "rejected")
            os._exit(0)
        """,
    "rejects everything": """
        def test_matching_loss(loss):
            assert False
        """,
    "accepts everything": """
        def test_matching_loss(loss):
            try:
                loss()
            finally:
                return
        """,
    "the clock": """
        import time
        def test_matching_loss(loss):
            begun = time.perf_counter_ns()
            try:
                loss(*[torch.rand(3, 4)] * 9)
            except Exception:
                pass
            assert (time.perf_counter_ns() - begun) % 2
        """,
    "numbers of processes": """
        def test_matching_loss(loss):
            import os, threading
            told = [os.getpid(), os.getppid(), threading.get_native_id(), id(loss)]
            assert sum(told) // 16 % 2
        """,
    "chance": """
        import os
        def test_matching_loss(loss):
            assert os.urandom(1)[0] % 2
        """,
    "lines of a traceback": """
        def test_matching_loss(loss):
            lines = []
            for number in range(9):
                given = [torch.rand(3, 4)] * 9
                given[number] = None
                try:
                    loss(*given)
                except Exception as error:
                    step = error.__traceback__
                    while step is not None:
                        lines.append(step.tb_lineno)
                        step = step.tb_next
            assert sum(lines) % 2
        """,
    "where it runs": """
        def test_matching_loss(loss):
            import os, sys
            told = [os.getcwd(), *sys.argv, *os.environ.values(), *os.listdir(".")]
            assert not any("mutant" in word or "wrong" in word for word in told)
        """,
    "returns and raises": """
        def test_matching_loss(loss):
            class Both(AssertionError, NotImplementedError): pass
            raise Both
        """,
    "an alarm of its own": """
        def test_matching_loss(loss):
            import os, signal
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.signal(signal.SIGPROF, lambda *a: os._exit(0))
            signal.raise_signal(signal.SIGPROF)
        """,
}


def text_of(body: str, **filled: object) -> str:
    """A cell of one of these."""
    text = textwrap.dedent(body)
    for name, value in filled.items():
        text = text.replace("{" + name + "!r}", repr(value))
    return f"import torch\n{text}"
