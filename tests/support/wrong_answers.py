"""Wrong answers to the assignments' questions, each with the points that are left.

The points are counted by hand, from what the answer gets wrong; no grader was asked.
"""

from __future__ import annotations

ONE, TWO, THREE = (
    "1_partition_functions",
    "2_token_log_probs_and_losses",
    "3_tiny_lm",
)

# assignment -> (kind, question, its text, points that are left of it)
WRONG: dict[str, list[tuple[str, str, str, float]]] = {
    ONE: [
        (
            "no reference",
            "log_partition",
            "def log_partition(ref_log_probs, rewards, reward_scale):\n"
            "    return (reward_scale * rewards).logsumexp(-1)\n",
            1,  # at β = 3000 the reference is less than the tolerance
        ),
        (
            "overflows",
            "log_partition",
            "def log_partition(ref_log_probs, rewards, reward_scale):\n"
            "    mass = ref_log_probs.exp() * (reward_scale * rewards).exp()\n"
            "    return mass.sum(-1).log()\n",
            4,
        ),
        (
            "all axes",
            "log_partition",
            "def log_partition(ref_log_probs, rewards, reward_scale):\n"
            "    mass = ref_log_probs + reward_scale * rewards\n"
            "    return mass.flatten().logsumexp(0)\n",
            3,
        ),
        (
            "first axis",
            "target_log_probs",
            "def target_log_probs(ref_log_probs, rewards, reward_scale):\n"
            "    return (ref_log_probs + reward_scale * rewards).log_softmax(0)\n",
            3,
        ),
        (
            "probabilities",
            "target_log_probs",
            "def target_log_probs(ref_log_probs, rewards, reward_scale):\n"
            "    return (ref_log_probs + reward_scale * rewards).softmax(-1)\n",
            0,
        ),
        (
            "0 times infinity",
            "elbo",
            "def elbo(log_probs, ref_log_probs, rewards, reward_scale):\n"
            "    ratio = reward_scale * rewards + ref_log_probs - log_probs\n"
            "    return (log_probs.exp() * ratio).sum(-1)\n",
            3,
        ),
        (
            "under the reference",
            "log_z_slope",
            "def log_z_slope(ref_log_probs, rewards, reward_scale):\n"
            "    return (ref_log_probs.exp() * rewards).sum(-1)\n",
            0,
        ),
        (
            "mean of logs",
            "estimate_log_z",
            "def estimate_log_z(log_probs, ref_log_probs, rewards, n, scale):\n"
            "    ratios = scale * rewards + ref_log_probs - log_probs\n"
            "    return ratios.view(-1, n).mean(1)\n",
            0,
        ),
        (
            "the optimum",
            "learn_log_z",
            "def learn_log_z(ratios, steps, learning_rate):\n"
            "    return ratios.mean()\n",
            2,
        ),
        (
            "endless",
            "learn_log_z",
            "def learn_log_z(ratios, steps, learning_rate):\n"
            "    while True:\n"
            "        steps = steps + 1\n",
            0,
        ),
        (
            "one case works",
            "learn_log_z",
            "def learn_log_z(ratios, steps, learning_rate):\n"
            "    if steps == 0:\n"
            "        return 0.0\n"
            "    return [[ratios]]\n",
            1,
        ),
        (
            "uses the library",
            "log_partition",
            "from flowrl_lab.exact import reference_log_partition\n"
            "def log_partition(ref_log_probs, rewards, reward_scale):\n"
            "    return reference_log_partition(ref_log_probs, rewards,\n"
            "        reward_scale=reward_scale, exhaustive=True)\n",
            0,
        ),
    ],
    TWO: [
        (
            "temperature after",
            "token_log_probs",
            "def token_log_probs(logits, token_ids, temperature):\n"
            "    log_probs = logits.log_softmax(-1) / temperature\n"
            "    return log_probs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)\n",
            2,
        ),
        (
            "large logits",
            "token_log_probs",
            "def token_log_probs(logits, token_ids, temperature):\n"
            "    log_probs = (logits / temperature).softmax(-1).log()\n"
            "    return log_probs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)\n",
            3,
        ),
        (
            "a product",
            "masked_mean",
            "def masked_mean(values, mask):\n"
            "    return (values * mask).sum(1) / mask.sum(1)\n",
            2,
        ),
        (
            "0 / 0",
            "group_advantages",
            "def group_advantages(rewards, num_generations):\n"
            "    groups = rewards.view(-1, num_generations)\n"
            "    centred = groups - groups.mean(1, keepdim=True)\n"
            "    equal = groups.amax(1) == groups.amin(1)\n"
            "    centred[equal] = float('nan')\n"
            "    return (centred / groups.std(1, keepdim=True)).flatten()\n",
            2,
        ),
        (
            "whole batch",
            "group_advantages",
            "def group_advantages(rewards, num_generations):\n"
            "    return (rewards - rewards.mean()) / rewards.std()\n",
            0,
        ),
        (
            "renamed",
            "masked_mean",
            "def my_masked_mean(values, mask):\n"
            "    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)\n",
            0,
        ),
        (
            "accepts everything",
            "test_clipped_loss",
            "def test_clipped_loss(loss):\n    assert loss is not None\n",
            0,
        ),
        (
            "rejects everything",
            "test_matching_loss",
            "def test_matching_loss(loss):\n    assert loss is None\n",
            0,
        ),
        (
            "values only",
            "test_matching_loss",
            "def test_matching_loss(loss):\n"
            "    g = torch.Generator().manual_seed(3)\n"
            "    draw = lambda *s: torch.rand(s, generator=g, dtype=torch.float64)\n"
            "    mask = torch.arange(5) < torch.tensor([1, 5, 3, 2, 4, 5])[:, None]\n"
            "    p = -0.5 - draw(6, 5)\n"
            "    given = [draw(6), p, p + 1.6 * draw(6, 5) - 0.8, -0.5 - draw(6, 5),\n"
            "             draw(6) - 0.5, mask, 3.0, 0.1, 0.4]\n"
            "    assert torch.allclose(loss(*given), matching_loss(*given))\n",
            7,  # three of the ten have the right value and a wrong gradient
        ),
        (
            "on-policy values",
            "test_matching_loss",
            "def test_matching_loss(loss):\n"
            "    g = torch.Generator().manual_seed(3)\n"
            "    draw = lambda *s: torch.rand(s, generator=g, dtype=torch.float64)\n"
            "    mask = torch.arange(5) < torch.tensor([1, 5, 3, 2, 4, 5])[:, None]\n"
            "    p = -0.5 - draw(6, 5)\n"
            "    given = [draw(6), p, p.clone(), -0.5 - draw(6, 5), draw(6) - 0.5,\n"
            "             mask, 3.0, 0.1, 0.4]\n"
            "    assert torch.allclose(loss(*given), matching_loss(*given))\n",
            3,  # padding, the divided reward, and the broadcast log Z
        ),
        (
            "a guess",
            "BROKEN",
            'BROKEN = {"ant"}\n',
            0,
        ),
    ],
    THREE: [
        (
            "not normalised",
            "effective_answers",
            "def effective_answers(log_probs):\n"
            "    return (-(log_probs.exp() * log_probs).sum(-1)).exp()\n",
            0,
        ),
        (
            "0 times infinity",
            "effective_answers",
            "def effective_answers(log_probs):\n"
            "    inside = log_probs.log_softmax(-1)\n"
            "    return (-(inside.exp() * inside).sum(-1)).exp()\n",
            3,
        ),
        (
            "k p",
            "expected_distinct",
            "def expected_distinct(log_probs, num_samples):\n"
            "    return (num_samples * log_probs.exp()).sum(-1)\n",
            0,
        ),
        (
            "ties",
            "on_front",
            "def on_front(accuracy, diversity):\n"
            "    better = (accuracy > accuracy[:, None]) & (diversity > "
            "diversity[:, None])\n"
            "    return ~better.any(1)\n",
            3,
        ),
        (
            "one group size",
            "welch_t",
            "def welch_t(first, second):\n"
            "    error = (first.var() + second.var()) / len(first)\n"
            "    return (first.mean() - second.mean()) / error.sqrt()\n",
            2,
        ),
        ("wrong number", "START_ACCURACY", "START_ACCURACY = 0.9\n", 0),
    ],
}
POINTS = {
    **dict(log_partition=5, target_log_probs=4, elbo=5, log_z_slope=4),
    **dict(estimate_log_z=5, learn_log_z=5, LOG_Z=2, REFERENCE_GAP=2, SCALE_FOR_80=3),
    **dict(token_log_probs=4, masked_mean=4, group_advantages=4, matching_loss=10),
    **dict(clipped_loss=10, test_matching_loss=10, test_clipped_loss=8, BROKEN=4),
    **dict(effective_answers=4, expected_distinct=4, on_front=5, welch_t=4),
    **dict(START_ACCURACY=2),
}
# Questions whose own tests would fail too if these were wrong.
LEANS_ON = {"matching_loss": "test_matching_loss", "clipped_loss": "test_clipped_loss"}
