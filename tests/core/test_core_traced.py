"""The checks under a trace: nothing reads a value where there is none.

torch.compile without graph breaks, torch.vmap and the meta device, each over the good
calls of the core.
"""

from __future__ import annotations

import math

import pytest
import torch
from test_core_bad_input import TABLE
from test_core_fuzz import CALLABLES
from torch.testing import assert_close

from flowrl_lab import advantages, exact, losses, metrics, partition, tokens

pytestmark = pytest.mark.bad_input  # beartype would be traced too

# They need values by nature: to draw, to list prefixes, to sort into bins, to count.
NEED_VALUES = {
    advantages.pass_at_k_advantages,
    exact.answers_target,
    exact.exact_log_flows,
    metrics.reliability,
    partition.unlearned_log_z,
}
NO_VMAP = {
    exact.exact_log_flows,
    metrics.reliability,
    partition.unlearned_log_z,
    tokens.log_probs_from_hidden,  # says so in its docstring
}


def _split(good):
    given = {k: v for k, v in good.items() if isinstance(v, torch.Tensor)}
    return given, {k: v for k, v in good.items() if k not in given}


def _cases(without):
    for name, function, good in CALLABLES:
        given, rest = _split(good)
        module = isinstance(function, torch.nn.Module)
        if given and function not in without and not module:
            result = function(**good)
            if isinstance(result, torch.Tensor):
                yield pytest.param(function, given, rest, id=name)


@pytest.mark.parametrize(("function", "given", "rest"), list(_cases(NEED_VALUES)))
def test_on_the_meta_device_only_shapes_count(function, given, rest):
    absent = {name: value.to("meta") for name, value in given.items()}
    result = function(**absent, **rest)
    assert result.is_meta
    assert result.shape == function(**given, **rest).shape


@pytest.mark.parametrize(("function", "given", "rest"), list(_cases(NO_VMAP)))
def test_under_vmap_it_is_each_call_by_itself(function, given, rest):
    twice = {name: torch.stack([value, value]) for name, value in given.items()}
    result = torch.vmap(lambda batch: function(**batch, **rest))(twice)
    assert_close(result, torch.stack([function(**given, **rest)] * 2))


@pytest.mark.parametrize(
    "function",
    [
        tokens.gather_log_probs,
        advantages.group_normalized,
        losses.flowrl_loss,
        losses.grpo_loss,
        losses.vargrad_loss,
        losses.clip_fraction,
        metrics.kl_divergence,
    ],
)
def test_compiled_in_one_graph_it_is_the_same(function):
    given, rest = _split(TABLE[function][0])
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda values: function(**values, **rest), fullgraph=True, backend="eager"
    )
    assert_close(compiled(given), function(**given, **rest))


def test_checks_still_look_at_the_values_of_a_vmap():
    good = torch.zeros(2, 4)
    bad = good.clone()
    bad[1, 2] = math.nan
    with pytest.raises(ValueError, match="`log_probs` has 1 NaN"):
        torch.vmap(losses.k1)(bad, good)
