"""The student's side: the problem, checks that name the mistake, a file to hand in.

Works offline, from the handout file beside the notebook.  The checks compare with
stored numbers on open cases; what they say is a help, and no mark: marks come from
hidden tests that only the instructor has.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flowrl_lab._validation import bad_input
from flowrl_lab.assignments.bundles import call_with_gradients
from flowrl_lab.assignments.compare import difference
from flowrl_lab.assignments.encoding import decode
from flowrl_lab.assignments.spec import Call
from flowrl_lab.course.checking import Result
from flowrl_lab.course.showing import show
from flowrl_lab.course.time_limit import TimeUp, call_with_limit

__all__ = ["Assignment", "open_assignment", "read_key"]

SECONDS = 10.0
NOT_ATTEMPTED = (
    "Replace the line `raise NotImplementedError` with your own code, run the cell, "
    "and check again."
)


def open_assignment(path: str | Path) -> Assignment:
    """Open the handout file that came with an assignment's notebook.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    path = Path(path)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Assignment(path.resolve().parent, fields)
    except FileNotFoundError:
        raise bad_input(
            "path",
            f"is {str(path)!r}, which is not in {Path.cwd()}",
            "the .json file that came with this notebook",
            "put it into the same folder as the notebook",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise bad_input(
            "path",
            f"is {str(path)!r}, which cannot be read ({type(error).__name__})",
            "the .json file that came with this notebook",
            "copy it again from where you got it",
        ) from None


class Assignment:
    """An assignment as a student's notebook sees it.

    Attributes:
        key: such as ``"1_partition_functions"``.
        variant: of the problem; yours alone if your course hands out variants.
        problem: tensors, numbers and texts, by name.
        folder: where the handout and the notebook lie.
    """

    def __init__(self, folder: Path, fields: dict[str, Any]):
        self.folder = folder
        self.key, self.variant = fields["assignment"], fields["variant"]
        self.student, self.title = fields["student"], fields["title"]
        self.problem = decode({"dict": fields["problem"]})
        self._questions = {row["name"]: row for row in fields["questions"]}
        self._checks = fields["checks"]

    def __repr__(self) -> str:
        return f"{self.title} (variant {self.variant})"

    def questions(self) -> None:
        """Print what is asked, and for how many points."""
        total = sum(row["points"] for row in self._questions.values())
        for row in self._questions.values():
            hand = "  (read by a person)" if row["by_hand"] else ""
            print(f"{row['points']:5g}  {row['name']:24} {row['title']}{hand}")
        print(f"{total:5g}  in all")

    def check(self, name: str, given: object) -> Result:
        """Check a function, a number or a test of yours; show the verdict.

        Args:
            name: of the question.
            given: the function or the number itself.
        """
        question = self._questions.get(name)
        if question is None:
            known = ", ".join(self._questions)
            result = Result(str(name), "failed", f"There is no such question: {known}.")
        elif question["kind"] == "number":
            result = _check_number(name, given)
        elif not callable(given):
            kind = type(given).__name__
            result = Result(name, "failed", f"Pass the function itself, not a {kind}.")
        elif question["kind"] == "own test":
            result = _check_own_test(name, given, self._checks[name]["harmless"])
        else:
            result = _check_function(name, given, self._checks[name])
        show({"text/html": result._repr_html_(), "text/plain": str(result)})
        result._shown = True
        return result

    def check_files(self, name: str) -> Result:
        """Check that the files of a question are there and can be read."""
        problems = []
        for file in self._checks[name]["files"]:
            path = self.folder / file
            if not path.is_file():
                problems.append(f"{file} is missing")
            elif file.endswith(".safetensors"):
                problems += _file_problem(path)
        if not problems:
            result = Result(name, "passed", "All files are there and can be read.")
        else:
            files = self._checks[name]["files"]
            untouched = not any((self.folder / file).exists() for file in files)
            status = "not attempted" if untouched else "failed"
            result = Result(name, status, "; ".join(problems) + ".")
        show({"text/html": result._repr_html_(), "text/plain": str(result)})
        result._shown = True
        return result

    def files(self) -> set[str]:
        """Names of the recorded files that belong to a submission."""
        return {file for c in self._checks.values() for file in c.get("files", ())}

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Run a block that needs your functions; says so where one is still missing.

        Run All then goes on.  Any other error is shown as ever.
        """
        try:
            yield
        except NotImplementedError:
            print("○ This needs a function that is not written yet; go on above.")

    def functions(self, name: str) -> dict[str, Callable]:
        """Functions that the problem gives as texts, by name, ready to be called."""
        found = {}
        for title, text in self.problem[name].items():
            names: dict[str, Any] = {}
            exec(compile(text, f"<{name}: {title}>", "exec"), names)
            found[title] = names[title]
        return found

    def submit(
        self, student: str = "", notebook: str | Path | None = None
    ) -> Path | None:
        """Write the file to hand in: the saved notebook with its recorded files.

        Args:
            student: your name as the course knows it; needed if the handout does
                not carry one.
            notebook: its path; by default the one beside the handout.

        Returns:
            The file, or None without a name (Run All goes on; what to do is printed).
            Your notebook and your files stay as they are.

        Raises:
            ValueError: no notebook, or another one.
        """
        from flowrl_lab.assignments.handing_in import is_name, write_submission

        if not is_name(student or self.student):
            print('○ Put your name in: assignment.submit(student="Ada Lovelace")')
            return None
        path, notes = write_submission(
            self.folder / f"{self.key}.ipynb" if notebook is None else Path(notebook),
            student or self.student,
            self.files(),
        )
        print(f"Hand in this file: {path}")
        for note in notes:
            print(f"  {note}")
        return path


# ----------------------------------------------------------------------------- checks


def _check_number(name: str, given: object) -> Result:
    if given is None:
        text = "Replace None with your number, run the cell, and check again."
        return Result(name, "not attempted", text)
    if isinstance(given, bool) or not isinstance(given, int | float | set | str):
        kind = type(given).__name__
        text = f"Write a plain number such as 1.23 (got a {kind}): float(...) helps."
        return Result(name, "failed", text)
    text = "A value is there. Whether it is right, only the instructor's test says."
    return Result(name, "passed", text)


def _check_function(name: str, function: Callable, stored: dict) -> Result:
    outputs, gradients = [], tuple(stored["gradients"])
    tolerance = tuple(stored["tolerance"])
    for number, row in enumerate(stored["calls"], 1):
        call = Call(tuple(decode(row["args"])), decode({"dict": row["kwargs"]}))
        try:
            output = call_with_limit(
                lambda call=call: call_with_gradients(function, call, gradients),
                SECONDS,
            )
        except NotImplementedError:
            return Result(name, "not attempted", NOT_ATTEMPTED)
        except TimeUp:
            text = f"Still running after {SECONDS:g} s. Is there an endless loop?"
            return Result(name, "failed", text)
        except Exception as error:
            text = f"Case {number} stops with {type(error).__name__}: {error}"
            return Result(name, "failed", text)
        outputs.append(output)
    expected = [decode(value) for value in stored["expected"]]
    names = _argument_names(function, gradients)
    wrong = [
        difference(o, e, tolerance, names)
        for o, e in zip(outputs, expected, strict=True)
    ]
    if not any(wrong):
        return Result(name, "passed", f"All {len(outputs)} open cases are right.")
    for slip in stored["slips"]:
        theirs = [decode(value) for value in slip["outputs"]]
        pairs = zip(outputs, theirs, strict=True)
        if not any(difference(o, t, tolerance) for o, t in pairs):
            return Result(name, "failed", slip["message"], slip["name"])
    number = next(i for i, text in enumerate(wrong, 1) if text)
    return Result(name, "failed", f"Case {number}: {wrong[number - 1]}.")


def _argument_names(function: Callable, places: tuple[int, ...]) -> list[str]:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []
    return [names[place] if place < len(names) else "?" for place in places]


def _check_own_test(name: str, test: Callable, harmless: str) -> Result:
    """Does the test accept the library's function, and reject an obvious fault?"""
    module, _, function = harmless.partition(":")
    right = getattr(importlib.import_module(module), function)
    try:
        call_with_limit(lambda: test(right), SECONDS)
    except NotImplementedError:
        return Result(name, "not attempted", NOT_ATTEMPTED)
    except TimeUp:
        return Result(name, "failed", f"Still running after {SECONDS:g} s.")
    except Exception as error:
        text = f"Your test rejects a right implementation: {type(error).__name__}"
        return Result(name, "failed", f"{text}: {error}")
    accepted = []
    for what, fault in _OBVIOUS.items():
        try:
            call_with_limit(lambda fault=fault: test(fault(right)), SECONDS)
        except Exception:  # it found fault, in whatever way
            continue
        accepted.append(what)
    if accepted:
        text = f"Your test accepts a loss that {accepted[0]}."
        return Result(name, "failed", text, accepted[0])
    text = (
        "It accepts a right implementation and rejects two obviously wrong ones. The "
        "hidden ones are subtler: think of padding, gradients, clips, and groups."
    )
    return Result(name, "passed", text)


_OBVIOUS: dict[str, Callable] = {
    "is always 0": lambda right: lambda *a, **k: 0 * right(*a, **k),
    "is twice what it should be": lambda right: lambda *a, **k: 2 * right(*a, **k),
}


def _file_problem(path: Path) -> list[str]:
    from flowrl_lab.assignments.marking.referee import read_tensors

    try:
        read_tensors(path.read_bytes())
    except ValueError as error:
        return [f"{path.name}: {error}"]
    return []


def read_key(notebook: Path) -> str:
    """The assignment that a saved notebook belongs to, or ""."""
    try:
        facts = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["flowrl"]
        return str(facts["assignment"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
