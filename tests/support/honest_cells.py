"""Right answers in styles that people have: each gets all its points.

What stands at the top of a cell is not run unless a function that is marked needs it;
these need it, each in another way.
"""

from __future__ import annotations

# `masked_mean`: values [B, T], mask [B, T] -> [B].
MEAN = "values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)"
DEFINED = f"def masked_mean(values, mask):\n    return {MEAN}"
STYLES: dict[str, list[str]] = {
    "a lambda": [f"masked_mean = lambda values, mask: {MEAN}"],
    "a lambda with a type": [
        "from typing import Callable",
        f"masked_mean: Callable = lambda values, mask: {MEAN}",
    ],
    "partial": [
        "import functools",
        f"def general(axis, values, mask):\n    return {MEAN.replace('(1)', '(axis)')}",
        "masked_mean = functools.partial(general, 1)",
    ],
    "a method": [
        f"class Mean:\n    def __call__(self, values, mask):\n        return {MEAN}",
        "MEANS = {}",
        "MEANS['masked'] = Mean()",
        "masked_mean = MEANS['masked'].__call__",
    ],
    "a module": [
        "import torch.nn as nn",
        f"class Mean(nn.Module):\n    def forward(self, values, mask):\n"
        f"        return {MEAN}",
        "masked_mean = Mean()",
    ],
    "an import that may fail": [
        "try:\n    from nowhere import masked\nexcept ImportError:\n"
        "    def masked(values, mask):\n        return values.masked_fill(~mask, 0.0)",
        "def masked_mean(values, mask):\n"
        "    return masked(values, mask).sum(1) / mask.sum(1)",
    ],
    "inside a condition": [
        "import torch",
        "if torch.__version__ >= '2':\n    " + DEFINED.replace("\n", "\n    "),
    ],
    "a decorator with a number": [
        "def times(number):\n    def wrap(function):\n"
        "        return lambda *given: number * function(*given)\n    return wrap",
        f"@times(2)\n{DEFINED} / 2",
    ],
    "decorators that want what is not there": [
        "import pytest, torch\nfrom typeguard import typechecked",
        "@pytest.mark.parametrize('case', [1, 2])\n@typechecked\n@torch.jit.script\n"
        + DEFINED,
    ],
    "compiled": ["import torch", f"@torch.compile(dynamic=True)\n{DEFINED}"],
    "compiled later": [DEFINED, "masked_mean = torch.compile(masked_mean)"],
    "shapes of a package that is not there": [
        "import torch\nfrom torchtyping import TensorType as T\n"
        "from jaxtyping import Float, Bool",
        "def masked_mean(values: T['b', 't'], mask: Bool[torch.Tensor, 'b t']) -> "
        f"Float[torch.Tensor, 'b']:\n    return {MEAN}",
    ],
    "a dataclass": [
        "from __future__ import annotations\nfrom dataclasses import dataclass, field",
        "@dataclass(frozen=True)\nclass Settings:\n    axis: int = 1\n"
        "    more: list[int] = field(default_factory=list)",
        "settings = Settings()",
        "def masked_mean(values, mask):\n    axis = settings.axis\n"
        f"    return {MEAN.replace('(1)', '(axis)')}",
    ],
    "a walrus, and stars": [
        "(axis := max([0, 1]))",
        "def masked_mean(*given, **named):\n    values, mask = given\n"
        "    if (total := mask.sum(axis)).numel():\n"
        "        return values.masked_fill(~mask, 0.0).sum(axis) / total",
    ],
    "counts with +=": [
        "axis = 0",
        "axis += 1",
        f"def masked_mean(values, mask):\n    return {MEAN.replace('(1)', '(axis)')}",
    ],
    "a loop that makes a table": [
        "SUMS = {}\nfor axis in (0, 1):\n"
        "    SUMS[axis] = lambda x, axis=axis: x.sum(axis)",
        "def masked_mean(values, mask):\n    total = SUMS[1]\n"
        "    return total(values.masked_fill(~mask, 0.0)) / total(mask)",
    ],
    "with a context": [
        "import torch",
        "with torch.no_grad():\n    zero = torch.rand(3).mul(0.0).sum().item()",
        f"def masked_mean(values, mask):\n    return {MEAN.replace('0.0', 'zero')}",
    ],
    "an awaitable helper": [
        "async def total(x):\n    return x.sum(1)",
        "def wait(coroutine):\n    try:\n        coroutine.send(None)\n"
        "    except StopIteration as end:\n        return end.value",
        "def masked_mean(values, mask):\n"
        "    kept = values.masked_fill(~mask, 0.0)\n"
        "    return wait(total(kept)) / wait(total(mask))",
    ],
    "matched and dispatched": [
        "import functools",
        "@functools.singledispatch\ndef size(x):\n    raise TypeError",
        "import torch",
        "@size.register\ndef _(x: torch.Tensor):\n    return x.sum(1)",
        "def masked_mean(values, mask):\n    match values.dim():\n        case 2:\n"
        "            return size(values.masked_fill(~mask, 0.0)) / size(mask)",
    ],
    "a list that is filled": [
        "axes = []\naxes.append(1)\naxes.extend([2, 3])\naxes.sort()",
        "def masked_mean(values, mask):\n"
        f"    return {MEAN.replace('(1)', '(axes[0])')}",
    ],
    "a dictionary that is filled in a loop": [
        "axes = {}\nfor place, name in enumerate(('row', 'column')):\n"
        "    axes.update({name: place})",
        "COLUMN = 'column'\ndef masked_mean(values, mask):\n"
        f"    return {MEAN.replace('(1)', '(axes[COLUMN])')}",
    ],
    "a tensor that is changed in place": [
        "import torch\nzero = torch.full((), 7.0).double()\nzero.fill_(0)",
        "def masked_mean(values, mask):\n"
        "    return torch.where(mask, values, zero).sum(1) / mask.sum(1)",
    ],
    "a name that a call sets": [
        "axis = None\ndef choose():\n    global axis\n    axis = 1",
        "choose()",
        f"def masked_mean(values, mask):\n    return {MEAN.replace('(1)', '(axis)')}",
    ],
    "the main program": [
        "if __name__ == '__main__':\n    " + DEFINED.replace("\n", "\n    ")
    ],
    "a module that is cleared": [
        "import torch\ntorch.__dict__.clear()",
        DEFINED + " + torch.zeros(())",
    ],
    "vmapped": [
        "import torch",
        "row = lambda v, m: v.masked_fill(~m, 0.0).sum() / m.sum()",
        "masked_mean = torch.vmap(row)",
    ],
    "a stub handed out once more": [
        f"masked_mean = lambda values, mask: {MEAN}",
        "def masked_mean(values, mask):\n    raise NotImplementedError",
    ],
    "single precision": [DEFINED + ".float().double()"],
}
# As a notebook's cell: through the reader, then marked.
AS_WRITTEN: dict[str, str] = {
    "Windows line ends": DEFINED.replace("\n", "\r\n") + "\r\n",
    "a byte order mark": "\ufeff" + DEFINED,
    "tabs and a form feed": "\x0c" + DEFINED.replace("    ", "\t"),
    "a timed cell with a mark": "\ufeff%%time\n" + DEFINED,
    "a shell line before": "!pip -q install einops\n%matplotlib inline\n" + DEFINED,
    "help behind": DEFINED + "\n\nmasked_mean?\n",
    "a shell line in a branch": DEFINED.replace(
        "    return", "    if mask is None:\n        !ls {values}\n    return"
    ),
    "timed inside": DEFINED.replace("return ", "%time total = ") + "\n    return total",
    "a script's head": "#!/usr/bin/env python\n# -*- coding: latin-1 -*-\n" + DEFINED,
    "semicolons": "import torch; x = 1;\n" + DEFINED + ";",
}
# Own tests that lean on what stands outside of them.
OWN_TESTS: dict[str, list[str]] = {
    "numbers drawn by numpy and random": [
        "import random\nimport numpy as np\nimport torch",
        "{matching_loss}",
        "def test_matching_loss(loss):\n"
        "    for _ in range(9):\n"
        "        a, b, c = (torch.tensor(-0.1 - np.random.rand(6, 5)) for _ in 'abc')\n"
        "        z, r = torch.tensor(np.random.rand(2, 6))\n"
        "        mask = torch.arange(5) < torch.randint(1, 6, (6, 1))\n"
        "        given = [z, a, a + 1.6 * b + 0.8, c, r - random.random()]\n"
        "        both = []\n"
        "        for f in (loss, matching_loss):\n"
        "            leaves = [x.clone().requires_grad_() for x in given]\n"
        "            value = f(*leaves, mask, 3.0, 0.1, 0.4)\n"
        "            slopes = torch.autograd.grad(value, leaves, allow_unused=True)\n"
        "            both.append([value.detach(), *slopes])\n"
        "        for ours, theirs in zip(*both):\n"
        "            zero = torch.zeros(())\n"
        "            ours = zero if ours is None else ours\n"
        "            theirs = zero if theirs is None else theirs\n"
        "            assert torch.allclose(ours, theirs)",
    ],
    "threads": [
        "import threading\nimport torch",
        "{matching_loss}",
        "def test_matching_loss(loss):\n"
        "    a, b, c = (-0.1 - torch.rand(6, 5, dtype=torch.float64) for _ in 'abc')\n"
        "    z, r = torch.rand(2, 6, dtype=torch.float64)\n"
        "    mask = torch.arange(5) < torch.arange(1, 7).unsqueeze(1)\n"
        "    said = [[], []]\n"
        "    def ask(f, rows):\n"
        "        for up in (-0.9, 0.0, 0.9):\n"
        "            leaves = [x.clone().requires_grad_()\n"
        "                      for x in (z, a, a + up + b, c, r)]\n"
        "            value = f(*leaves, mask, 3.0, 0.1, 0.4)\n"
        "            found = torch.autograd.grad(value, leaves, allow_unused=True)\n"
        "            zero = torch.zeros(())\n"
        "            found = [zero if x is None else x for x in found]\n"
        "            rows.append([value.detach(), *found])\n"
        "    pairs = [(loss, said[0]), (matching_loss, said[1]), (loss, [])]\n"
        "    threads = [threading.Thread(target=ask, args=pair) for pair in pairs]\n"
        "    for thread in threads:\n"
        "        thread.start()\n"
        "    for thread in threads:\n"
        "        thread.join()\n"
        "    for ours, theirs in zip(*said, strict=True):\n"
        "        assert all(map(torch.allclose, ours, theirs))",
    ],
    "a global batch": [
        "import torch\nfrom torch import tensor",
        "generator = torch.Generator().manual_seed(0)\n"
        "draw = lambda *shape: torch.rand(shape, generator=generator, "
        "dtype=torch.float64)\n"
        "mask = torch.arange(5) < tensor([1, 5, 3, 2, 4, 5]).unsqueeze(1)\n"
        "log_probs = -0.5 - draw(6, 5)\n"
        "tensors = [draw(6), log_probs, log_probs + 1.6 * draw(6, 5) - 0.8,\n"
        "           -0.5 - draw(6, 5), draw(6) - 0.5]",
        "{matching_loss}",
        "expected = None\n"
        "def run(function):\n"
        "    given = [t.clone().requires_grad_() for t in tensors]\n"
        "    value = function(*given, mask, 3.0, 0.1, 0.4)\n"
        "    slopes = torch.autograd.grad(value, given, allow_unused=True)\n"
        "    return [value.detach(), *(torch.zeros_like(x) if s is None else s\n"
        "                              for s, x in zip(slopes, given))]",
        "expected = run(matching_loss)",
        "def test_matching_loss(loss):\n"
        "    for ours, theirs in zip(run(loss), expected, strict=True):\n"
        "        assert ours.shape == theirs.shape and torch.allclose(ours, theirs)",
    ],
}
