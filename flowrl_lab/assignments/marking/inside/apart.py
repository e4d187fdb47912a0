"""A student's test in one process, and the loss that it tests in another.

The test calls what looks like the loss: its arguments go out as plain data, and what
the loss gives for them comes back, its gradients when they are asked for.  So a test
sees what a loss computes and nothing else: neither its code nor its graph is there.

Both sides are in this file, which stands alone: ``loss_of`` for the process that runs
the test, as part of the worker, and ``answer`` for the one that holds the losses,
which ``SandboxServer`` asks.  Tensors travel bit by bit.
"""

import ast
import base64
import builtins
import functools
import json
import os
import threading

import torch
from torch.autograd.function import once_differentiable

KINDS = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        *(torch.float64, torch.float32, torch.float16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    )
}
MAX_LETTERS = 900_000  # of a question or an answer: what a pipe takes at once


# ------------------------------------------------------------------------- plain data


def pack(tensor):
    """A tensor as JSON takes it: kind of numbers, shape, bytes in base64."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in KINDS:
        raise TypeError(f"a loss is tested on {', '.join(KINDS)}, not on {kind}")
    flat = tensor.detach().cpu().contiguous()
    while torch._C._functorch.is_gradtrackingtensor(flat):  # inside torch.func.grad
        flat = torch._C._functorch.get_unwrapped(flat)
    with torch._C._DisableFuncTorch():
        content = base64.b64encode(flat.numpy().tobytes())
    return [kind, list(tensor.shape), content.decode()]


def unpack(packed):
    """The tensor that was packed; raises for anything else."""
    kind, shape, text = packed
    content = bytearray(base64.b64decode(text))
    if not content:
        return torch.zeros(shape, dtype=KINDS[kind])
    return torch.frombuffer(content, dtype=KINDS[kind]).reshape(shape)


def take_out(value, tensors):
    """Plain data, with ``{"tensor": place}`` for each tensor, which is added there."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [take_out(part, tensors) for part in value]
    if hasattr(value, "item"):  # a number of numpy
        return value.item()
    raise TypeError(f"a loss takes tensors and numbers, not {type(value).__name__}")


def put_back(value, tensors):
    """What ``take_out`` was given; lists stay lists."""
    if isinstance(value, list):
        return [put_back(part, tensors) for part in value]
    return tensors[value["tensor"]] if isinstance(value, dict) else value


# -------------------------------------------------------------- the side of the test


class Line:
    """Asks whoever holds the loss, one question after the other.

    Args:
        reading: handle where the answers come.
        writing: handle where the questions go.
    """

    def __init__(self, reading, writing):
        self.reading, self.writing = reading, writing
        self.turn = threading.Lock()  # a test may call the loss from several threads

    def ask(self, question):
        """The answer; raises what the loss raised."""
        with self.turn:
            answer = self.exchange(question)
        if "error" in answer:
            name, words = answer["error"]
            raise getattr(builtins, name, RuntimeError)(words)
        return answer

    def exchange(self, question):
        """What is said to a question, whatever it is."""
        line = json.dumps(question).encode() + b"\n"
        if len(line) > MAX_LETTERS:
            raise ValueError("that are too many numbers at once: test on smaller ones")
        while line:
            line = line[os.write(self.writing, line) :]
        said = b""
        while not said.endswith(b"\n"):
            said += os.read(self.reading, 1 << 16) or b"{}\n"
        return json.loads(said)


class Call:
    """One call of a loss, but for its tensors.

    Attributes:
        line: to whoever holds the loss.
        rest: of what is asked.
        attached: whether its value depends on what gradients are wanted for.
    """

    def __init__(self, line, rest):
        self.line, self.rest, self.attached = line, rest, True

    def ask(self, tensors, slope=None):
        packed = [pack(tensor) for tensor in tensors]
        slope = slope if slope is None else pack(slope)
        return self.line.ask({**self.rest, "tensors": packed, "slope": slope})


class Asked(torch.autograd.Function):
    """The value of a loss elsewhere, as a part of the graph here."""

    @staticmethod
    def forward(call, *tensors):
        answer = call.ask(tensors)
        call.attached = answer["attached"]
        return unpack(answer["value"])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)
        if not ctx.call.attached:
            ctx.mark_non_differentiable(output)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        slopes = ctx.call.ask(ctx.saved_tensors, slope)["slopes"]
        return None, *(s if s is None else unpack(s) for s in slopes)


def loss_of(line):
    """The loss at the other end, as a function; all of them look alike."""

    def implementation(*given, **named):
        tensors = []
        rest = {"given": take_out(given, tensors)}
        rest["named"] = {n: take_out(value, tensors) for n, value in named.items()}
        rest["wanted"] = [tensor.requires_grad for tensor in tensors]
        return Asked.apply(Call(line, rest), *tensors)

    return implementation


# ------------------------------------------------------------- the side of the losses


def answer(question):
    """What a loss gives, as text.

    Args:
        question: the loss's ``text`` and what is ``asked``, as ``Line`` wrote it: it
            comes from a process that nobody trusts.
    """
    torch.set_num_threads(1)
    try:
        told = compute(load(question["text"]), json.loads(question["asked"]))
        text = json.dumps(told)
        if len(text) > MAX_LETTERS:
            raise ValueError("the loss gives too many numbers at once")
    except Exception as error:
        known = [k.__name__ for k in type(error).__mro__ if k.__module__ == "builtins"]
        text = json.dumps({"error": [known[0], str(error)[:300]]})
    return text


@functools.cache
def load(text):
    """The function that an implementation defines last."""
    names = {}
    exec(text, names)
    functions = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)]
    return names[functions[-1].name]


def compute(loss, asked):
    """The value of a loss, and whether it is attached to anything; or its slopes."""
    torch.set_grad_enabled(True)
    tensors = [
        unpack(packed).requires_grad_(bool(wanted))
        for packed, wanted in zip(asked["tensors"], asked["wanted"], strict=True)
    ]
    named = {name: put_back(value, tensors) for name, value in asked["named"].items()}
    with torch.enable_grad():
        value = loss(*put_back(asked["given"], tensors), **named)
    if asked["slope"] is None:
        return {"value": pack(value), "attached": value.requires_grad}
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    slope = unpack(asked["slope"])
    found = iter(torch.autograd.grad(value, leaves, slope, allow_unused=True))
    slopes = [next(found) if tensor.requires_grad else None for tensor in tensors]
    return {"slopes": [s if s is None else pack(s) for s in slopes]}
