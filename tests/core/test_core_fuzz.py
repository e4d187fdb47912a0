"""Every public callable of the core under arguments that nobody means.

Found through ``__all__``, so that a new function is covered by itself: the table of
test_core_bad_input gives a good call where it knows one, and one or two arguments of
it are replaced; where it knows none, all of them are.  Whatever comes in, there is a
finite result or a ValueError or TypeError that names an argument, within bounds of
time and memory.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import signal
from collections.abc import Mapping
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core_bad_input import LOG_P, TABLE, TOKENS, B, H, N

from flowrl_lab import (
    advantages,
    evaluation,
    exact,
    losses,
    metrics,
    partition,
    tokens,
)
from flowrl_lab.types import AnswerSet

pytestmark = [
    pytest.mark.bad_input,
    # Made by the odd tensors themselves.
    pytest.mark.filterwarnings(
        "ignore:.*(nested|sparse|MaskedTensor|masked):UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning"),
]

NAN, INF = math.nan, math.inf
ANSWER_SET = AnswerSet(
    prompt="p",
    labels=("a", "b", "c"),
    completion_ids=torch.arange(N).unsqueeze(1),
    completion_mask=torch.ones(N, 1, dtype=torch.bool),
    rewards=torch.tensor([1.0, 0.0, 1.0]),
    correct=torch.tensor([True, False, True]),
    groups=torch.tensor([0, -1, 1]),
    exhaustive=True,
)
REPORT = exact.exact_report(
    LOG_P, LOG_P, ANSWER_SET, target_reward_scale=1.0, run_reward_scale=1.0
)


class Policy:
    """Writes each of three answers as often."""

    device = "cpu"

    def evaluate(self, _prompts, ids, _mask, **_settings):
        return SimpleNamespace(log_probs=torch.full(ids.shape, -math.log(N)))

    def prompt_features(self, prompts, _pooling):
        return torch.zeros(len(prompts), H)


class Task:
    reward_scale = 1.0

    def answers(self, _text):
        return ANSWER_SET

    def encode(self, texts):
        return texts


JUDGED = {"policy": Policy(), "task": Task(), "prompts": ["p"]}
INSTANCES = {
    partition.LogPartitionHead: (
        partition.LogPartitionHead(H),
        {"features": torch.rand(B, H)},
    ),
    partition.LogZTable: (partition.LogZTable(B), {"indices": torch.arange(B)}),
    metrics.CountingJudge: (
        metrics.CountingJudge(),
        {"prompt": "p", "responses": ["a", "b"]},
    ),
    metrics.TextJudge: (
        metrics.TextJudge(lambda _text: "Rating: 3"),
        {"prompt": "p", "responses": ["a", "b"]},
    ),
}
MORE = {
    losses.k1: {"log_probs": TOKENS, "ref_log_probs": TOKENS / 2},
    losses.k2: {"log_probs": TOKENS, "ref_log_probs": TOKENS / 2},
    losses.k3: {"log_probs": TOKENS, "ref_log_probs": TOKENS / 2},
    exact.exact_report: TABLE[exact.exact_report][0] | {"answers": ANSWER_SET},
    exact.answers_target: TABLE[exact.answers_target][0] | {"answers": ANSWER_SET},
    exact.mean_report: {"reports": [REPORT, REPORT]},
    evaluation.Referee: JUDGED,
    evaluation.evaluate_policy: JUDGED | {"log_z": None, "log_z_features": "last"},
    metrics.TextJudge: {"complete": str},
    partition.LogPartitionHead: {"hidden_size": H},
    partition.LogZTable: {"num_prompts": B},
    partition.start_log_z: {"module": partition.LogZTable(2), "value": 1.0},
}
# NaN without Z_φ, or for values that are all equal: as documented.
NAN_FIELDS = {"log_z_learned", "log_z_rmse", "slope", "intercept", "correlation"}
# NaN for values that are all equal; values that are not looked at.
NAN_RESULTS = {metrics.rank_correlation, tokens.log_probs_from_logits}
MODULES = (tokens, advantages, losses, partition, exact, evaluation, metrics)


def _callables():
    """(name, callable, its good call): functions, constructors, calls of modules."""
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value) or getattr(value, "_is_protocol", False):
                continue
            if dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
                continue  # a record holds what it is given
            good = MORE.get(value) or TABLE.get(value, ({},))[0]
            yield name, value, good
            if value in INSTANCES:
                instance, good = INSTANCES[value]
                yield f"{name}.__call__", instance, good


CALLABLES = list(_callables())


def _floats(change):
    return lambda good: change(torch.as_tensor(good).clone().float())


def _filled(value):
    return lambda good: torch.full_like(good.double(), value).to(good.dtype)


def _first(value):
    def change(good):
        bad = good.double().clone()
        bad.view(-1)[0] = value
        return bad

    return change


DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
    torch.bool,
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint64,
)
# What can be made of a good tensor.
CHANGES = [
    *((lambda good, dtype=dtype: good.to(dtype)) for dtype in DTYPES),
    *(_filled(v) for v in (0.0, -1.0, 1.0, NAN, INF, -INF, 1e30, -1e30, 1e-40, 60.0)),
    *(_first(v) for v in (NAN, INF, -INF, 1e308, -1e308, 1e12, 2.0**62, -1.0, 5e-324)),
    lambda good: good.to_sparse(),
    lambda good: good.to_sparse_csr(),
    lambda good: torch.nested.nested_tensor([good, good]),
    lambda good: torch.nested.nested_tensor([good, good], layout=torch.jagged),
    lambda good: torch.quantize_per_tensor(good.float(), 0.1, 0, torch.qint8),
    lambda good: torch.masked.masked_tensor(good.clone(), torch.ones_like(good) > 0),
    lambda _good: torch.nn.UninitializedParameter(),
    lambda good: good.to("meta"),
    lambda good: good.unsqueeze(0),
    lambda good: good.unsqueeze(-1),
    lambda good: good.flatten(),
    lambda good: good.sum(),
    lambda good: good[:0],
    lambda good: good[:1],
    lambda good: good[..., :-1],
    lambda good: good.T if good.ndim == 2 else good.flip(0),
    lambda good: good.repeat(2, *[1] * (good.ndim - 1)),
    lambda good: good.clone().requires_grad_(),
    lambda good: good.tolist(),
    lambda good: good.numpy(),
    lambda good: list(good),
    lambda good: tuple(good.tolist()),
    lambda good: 1e6 * good,
    lambda good: -good,
]


class Unspeakable:
    """Its text cannot be had, and neither its length."""

    def __repr__(self):
        raise RuntimeError("no words")

    def __len__(self):
        raise RuntimeError("no end")


# What is no tensor, or stands where none is meant.
ODD = [None, True, False, 1j, object(), Unspeakable(), [Unspeakable()], lambda *_: None]
ODD += [0, 1, 2, 3, -1, 0.5, -0.5, 1.0, 1e308, -1e308, 5e-324, NAN, INF, -INF]
ODD += [10**12, 10**30, 10**400, -(10**400), 10**5000, 100_001]
ODD += [2**31, 2**62, 2**63, -(2**63), 2**64]
ODD += ["", "text", "mean", "none", "x" * 10_000, "\ud800", b"bytes"]
ODD += [[], [[]], [None, None], [1.0, NAN], ["a"], ["a", 1], [["a"], ["b"]]]
ODD += [["\ud800", ""], [torch.ones(2), torch.ones(2)], [[1, 2], [3]], [{}, {}]]
ODD += [(), (1, 2, 3), set(), range(3), {}, {"p": 1}]
ODD += [{"p": ["a", "b"]}, {"p": [1, 2]}, {1: ["a", "b"]}]
ODD += [np.ones(3), np.ones((4, 3), dtype=bool), np.array("text"), np.array(None)]
ODD += [np.float64(0.5), np.float32(0.5), np.int64(2)]
ODD += [torch.tensor(value) for value in (0.5, NAN, 2, True)]
ODD += [torch.ones(3), torch.ones(2, 2), torch.empty(0), torch.nn.Linear(2, 2)]
ODD += [torch.tensor([0, 1, 10**12]), torch.tensor([2**63 - 1, 0, -1])]
ODD += [SimpleNamespace(rewards=None), dataclasses.replace(REPORT, num_prompts=0)]
ODD += [[dataclasses.replace(REPORT, pass_at_k={}), REPORT]]
ODD += [
    dataclasses.replace(ANSWER_SET, **change)
    for change in (
        {"rewards": [1.0, 0.0, 1.0]},
        {"groups": torch.tensor([0, 1, 10**12])},
        {"exhaustive": "no"},
        {"correct": torch.zeros(N, dtype=torch.bool)},
    )
]
ODD += [[metrics.ReliabilityBin(0, 1, NAN, 0.5, 1)]]
ODD += [[metrics.ReliabilityBin(0, 1, 0.5, 0.5, 0)]]


@st.composite
def _calls(draw, good, names):
    """A good call with one or two arguments replaced; all, where none is known."""
    known = [name for name in names if name in good]
    if known:
        few = st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)
        replaced = draw(few)
    else:
        replaced = names
    arguments = dict(good)
    for name in replaced:
        value = good.get(name)
        if isinstance(value, torch.Tensor) and draw(st.integers(0, 3)):
            change = draw(st.sampled_from(CHANGES))
            try:
                arguments[name] = change(value)
            except (RuntimeError, TypeError, ValueError, NotImplementedError):
                arguments[name] = None  # torch cannot make it of this one
        else:
            odd = st.sampled_from(ODD) | st.integers() | st.floats() | st.text()
            arguments[name] = draw(odd)
    return arguments


@contextmanager
def _limits(seconds=10):
    """Stop what does not end, by the processor's clock: other work does not count."""

    def stop(*_):
        raise TimeoutError(f"more than {seconds} seconds of the processor")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.fixture(scope="module", autouse=True)
def _little_memory():
    """4 GB more than now: what asks for terabytes fails, and what takes 8 GB."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def _numbers(result):
    """All numbers in a result, as float tensors."""
    if isinstance(result, torch.Tensor):
        yield result.detach().double() if result.numel() else torch.zeros(1)
    elif isinstance(result, float | int):
        yield torch.tensor(float(result), dtype=torch.float64)
    elif isinstance(result, torch.nn.Module):
        for parameter in result.parameters():
            yield parameter.detach()
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            if field.name not in NAN_FIELDS:
                yield from _numbers(getattr(result, field.name))
    elif isinstance(result, Mapping):
        yield from _numbers(tuple(result.values()))
    elif isinstance(result, list | tuple):
        for one in result:
            yield from _numbers(one)


def _holds_infinity(arguments):
    tensors = [v for v in arguments.values() if isinstance(v, torch.Tensor)]
    return any(v.is_floating_point() and bool(v.isinf().any()) for v in tensors)


def _is_meta(arguments):
    return any(isinstance(v, torch.Tensor) and v.is_meta for v in arguments.values())


def _call(function, arguments):
    """The call has a finite result, or an error that names an argument."""
    try:
        with _limits():
            result = function(**arguments)
    except (ValueError, TypeError) as error:
        message = str(error)
        assert "Fix: " in message, message
        assert any(name in message for name in arguments), message
        assert len(message) < 1500
        return
    except ImportError as error:  # self_bleu without its package
        assert "Fix: pip install" in str(error)
        return
    if _is_meta(arguments) or function in NAN_RESULTS:
        return
    for numbers in _numbers(result):
        assert not bool(numbers.isnan().any()), result
        # An infinite distance or log-prob is one where an infinite log-prob came in.
        assert _holds_infinity(arguments) or bool(numbers.isfinite().all()), result


@pytest.mark.parametrize(
    ("function", "good"),
    [pytest.param(function, good, id=name) for name, function, good in CALLABLES],
)
def test_any_argument_gives_a_finite_result_or_an_error_that_names_it(function, good):
    called = function.forward if isinstance(function, torch.nn.Module) else function
    names = list(inspect.signature(called).parameters)

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(_calls(good, names))
    def check(arguments):
        _call(function, arguments)

    if names:
        check()


def test_every_module_of_the_core_is_drawn_from():
    homes = {function.__module__ for _, function, _ in CALLABLES}
    for module in MODULES:
        assert any(home.startswith(module.__name__) for home in homes)
    assert len(CALLABLES) >= 60
    for _, function, good in CALLABLES:
        if good:
            function(**good)


@pytest.mark.parametrize("name", ["log_probs", "completion_mask", "rewards"])
def test_a_tensor_on_another_device_is_named(name):
    call = dict(TABLE[losses.flowrl_loss][0])
    call[name] = call[name].to("meta")
    with pytest.raises(ValueError, match=r"is on device .*; expected .*\.to\("):
        losses.flowrl_loss(**call)
