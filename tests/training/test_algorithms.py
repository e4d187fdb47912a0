"""Each algorithm's loss and gradient, derived once more from its formula.

The oracle has its own softmax table in float64 and plain loops; it shares no code
with ``losses``, ``advantages`` or the policy.
"""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from flowrl_lab.training.algorithms import ALGORITHMS
from flowrl_lab.training.batch import shaped_rewards
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.records import measure
from flowrl_lab.training.rollouts import collect_rollout
from flowrl_lab.training.run import Run
from flowrl_lab.training.step import training_step

PROMPTS, GROUP, VOCAB, LENGTH = 2, 6, 3, 2
NAMES = sorted(ALGORITHMS)


def make_run(algorithm: str, **changes) -> Run:
    """Words of two letters from three, for two prompts; nothing starts at zero."""
    changes = {"pass_k": 3, **changes}
    settings = {
        "task": "strings",
        "task_options": {
            "length": LENGTH,
            "alphabet": VOCAB,
            "blobs": 2,
            "blob_width": 0.3,
            "heldout_prompts": 0,
        },
        "prompts_per_step": PROMPTS,
        "num_generations": GROUP,
        "reward_scale": 4.0,
        "clip_low": 0.1,
        "clip_high": 0.3,
        "kl_coef": 0.25,
        **changes,
    }
    run = Run(ExperimentConfig(algorithm=algorithm, **settings))
    shake(run, seed=1, size=1.0)
    return run


def shake(run: Run, *, seed: int, size: float) -> None:
    """Move every weight a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (*run.policy.parameters(), *run.modules.parameters()):
            weight += size * torch.randn(weight.shape, generator=generator)


def roll_out(run: Run):
    prompts = run.task.encode(run.task.prompts("train"))
    return collect_rollout(
        run.policy,
        run.task,
        prompts,
        GROUP,
        temperature=1.0,
        generator=torch.Generator().manual_seed(2),
    )


class Oracle:
    """The same weights in float64, and every algorithm written out."""

    def __init__(self, run: Run, rollout):
        self.config, self.rows = run.config, []
        self.logits = run.policy.logits.detach().double().requires_grad_()
        riders = dict(run.modules.named_parameters())
        self.log_z, self.values = (
            riders[name].detach().double().requires_grad_() if name in riders else None
            for name in ("log_z.log_z", "critic.values")
        )
        self.rewards = rollout.rewards.tolist()
        for row, (first, second) in enumerate(rollout.completion_ids.tolist()):
            prompt = row // GROUP
            self.rows.append(((prompt, 0, first), (prompt, 1 + first, second)))
        self.old = self.log_probs().tolist()  # made before the weights move
        self.old_values = None if self.values is None else self.read_values().tolist()

    def log_probs(self):
        tables = self.logits.log_softmax(-1)
        return torch.stack([torch.stack([tables[p] for p in row]) for row in self.rows])

    def read_values(self):
        """The critic has one value for each prefix of each prompt."""
        prefixes = self.logits.shape[1]
        return torch.stack(
            [
                torch.stack(
                    [
                        self.values[prompt * prefixes + prefix]
                        for prompt, prefix, _ in row
                    ]
                )
                for row in self.rows
            ]
        )

    def catch_up(self, run: Run):
        """Take the run's weights as they are now; what was old stays old."""
        self.logits = run.policy.logits.detach().double().requires_grad_()
        for name, weight in run.modules.named_parameters():
            taken = weight.detach().double().requires_grad_()
            setattr(
                self, {"log_z.log_z": "log_z", "critic.values": "values"}[name], taken
            )

    def group(self, row: int) -> list[int]:
        start = row // GROUP * GROUP
        return list(range(start, start + GROUP))

    def z_scores(self) -> list[float]:
        scores = []
        for row, reward in enumerate(self.rewards):
            peers = [self.rewards[peer] for peer in self.group(row)]
            spread = statistics.stdev(peers)
            scores.append((reward - statistics.mean(peers)) / (spread + 1e-6))
        return scores

    def best_of_k_scores(self) -> list[float]:
        """Every subset of k samples is a team that scores its best member's reward."""
        scores = []
        for row in range(len(self.rewards)):
            teams = list(itertools.combinations(self.group(row), self.config.pass_k))
            best = [max(self.rewards[i] for i in team) for team in teams]
            own = [b for b, team in zip(best, teams, strict=True) if row in team]
            spread = statistics.pstdev(best)
            scores.append(
                (statistics.mean(own) - statistics.mean(best)) / (spread + 1e-6)
            )
        return scores

    @staticmethod
    def whitened(table: list[list[float]]) -> list[list[float]]:
        flat = [value for row in table for value in row]
        mean, variance = statistics.mean(flat), statistics.variance(flat)
        return [[(v - mean) / math.sqrt(variance + 1e-8) for v in row] for row in table]

    def surrogate(self, advantages, *, kl_coef: float, dual_clip: float = math.inf):
        """[B][T] of -min(ρA, clip(ρ)A) + c k3, with its sign-dependent cases."""
        low, high = 1 - self.config.clip_low, 1 + self.config.clip_high
        now = self.log_probs()
        terms = []
        for row, t in itertools.product(range(len(self.rows)), range(LENGTH)):
            advantage = advantages[row][t]
            ratio = (now[row, t] - self.old[row][t]).exp()
            if advantage >= 0:
                kept = ratio if ratio.item() < high else torch.tensor(high).double()
            else:
                kept = ratio if ratio.item() > low else torch.tensor(low).double()
                if kept.item() > dual_clip:
                    kept = torch.tensor(dual_clip).double()
            d = -math.log(VOCAB) - now[row, t]
            terms.append(-kept * advantage + kl_coef * (d.exp() - d - 1))
        return torch.stack(terms).mean()  # all rows have two tokens

    def sequence(self):
        """(log π, log π_ref, log π_old) of whole words."""
        old = torch.tensor(self.old).double().sum(1)
        reference = torch.full((len(self.rows),), -LENGTH * math.log(VOCAB)).double()
        return self.log_probs().sum(1), reference, old

    def flow_terms(self):
        """Residuals and importance weights of FlowRL, by the settings."""
        config = self.config
        now, reference, old = self.sequence()
        scores = self.rewards
        if config.reward_form == "group_normalized":
            scores = self.z_scores()
        lengths = LENGTH if config.length_normalize else 1
        residuals = torch.stack(
            [
                self.log_z[row // GROUP]
                + (now[row] - reference[row]) / lengths
                - config.reward_scale * score
                for row, score in enumerate(scores)
            ]
        )
        weights = []
        for ratio in (now - old).exp().tolist():
            weights.append(
                {
                    "none": 1.0,
                    "raw": ratio,
                    "max10": min(ratio, 10.0),
                    "clip": min(max(ratio, 1 - config.clip_low), 1 + config.clip_high),
                }[config.importance]
            )
        return residuals, torch.tensor(weights).double()

    def loss(self):
        name, coefficient = self.config.algorithm, self.config.kl_coef
        if name == "flowrl":
            residuals, weights = self.flow_terms()
            return (weights * residuals**2).mean()
        if name == "grpo":
            return self.surrogate(
                [[a] * LENGTH for a in self.z_scores()], kl_coef=coefficient
            )
        if name == "dapo":  # both groups have a signal here: the plain token mean
            table = [[a] * LENGTH for a in self.z_scores()]
            return self.surrogate(table, kl_coef=coefficient)
        if name == "pass_at_k":
            return self.surrogate(
                [[a] * LENGTH for a in self.best_of_k_scores()], kl_coef=coefficient
            )
        if name == "reinforce_pp":
            table = self.whitened([[reward] * LENGTH for reward in self.rewards])
            return self.surrogate(table, kl_coef=coefficient)
        if name == "ppo":
            return self.ppo()
        return self.vargrad() if name == "vargrad" else self.kl_reinforce()

    def ppo(self):
        raw = [
            [reward - value for value in values]
            for reward, values in zip(self.rewards, self.old_values, strict=True)
        ]
        coefficient = self.config.kl_coef
        policy = self.surrogate(self.whitened(raw), kl_coef=coefficient, dual_clip=3.0)
        errors, now = [], self.read_values()
        for row, t in itertools.product(range(len(self.rows)), range(LENGTH)):
            old, target = self.old_values[row][t], self.rewards[row]
            held = old + (now[row, t] - old).clamp(-0.5, 0.5)
            errors.append(
                torch.maximum((now[row, t] - target) ** 2, (held - target) ** 2)
            )
        return policy + 0.5 * torch.stack(errors).mean()

    def vargrad(self):
        now, reference, _ = self.sequence()
        excess = now - reference - self.config.reward_scale * torch.tensor(self.rewards)
        total = 0.0
        for row in range(len(self.rows)):
            mean = sum(excess[peer] for peer in self.group(row)) / GROUP
            total = total + (excess[row] - mean) ** 2
        return total / len(self.rows)

    def kl_reinforce(self):
        now, reference, _ = self.sequence()
        paid = [
            reward - self.config.kl_coef * (now[row] - reference[row]).item()
            for row, reward in enumerate(self.rewards)
        ]
        total = 0.0
        for row in range(len(self.rows)):
            others = [paid[peer] for peer in self.group(row) if peer != row]
            total = total - (paid[row] - statistics.mean(others)) * now[row]
        return total / len(self.rows)


def find_loss(run: Run, batch):
    """The loss of a batch and its parts, under the policy as it is now."""
    rollout = batch.rollout
    output = run.policy.evaluate(
        rollout.prompts, rollout.completion_ids, rollout.completion_mask
    )
    log_z = run.algorithm.log_z(batch, output) if run.algorithm.log_z else None
    return run.algorithm.loss(batch, output, log_z)


def check(run: Run, oracle: Oracle, batch):
    """Loss and gradients of policy and riders against the oracle's."""
    for weight in (*run.policy.parameters(), *run.modules.parameters()):
        weight.grad = None
    parts = find_loss(run, batch)
    parts.loss.backward()
    expected = oracle.loss()
    expected.backward()
    torch.testing.assert_close(parts.loss.detach(), expected.detach().float())
    torch.testing.assert_close(run.policy.logits.grad, oracle.logits.grad.float())
    assert run.policy.logits.grad.abs().max() > 1e-3
    for name, taken in (("log_z", oracle.log_z), ("critic", oracle.values)):
        if taken is not None:
            (weight,) = run.modules[name].parameters()
            torch.testing.assert_close(weight.grad, taken.grad.float())
            assert weight.grad.abs().max() > 1e-3
    return parts


def test_the_eight_algorithms_are_there():
    assert list(ALGORITHMS) == [
        "reinforce_pp",
        "ppo",
        "grpo",
        "dapo",
        "pass_at_k",
        "flowrl",
        "vargrad",
        "kl_reinforce",
    ]
    assert [n for n in NAMES if ALGORITHMS[n].uses_values] == ["ppo"]
    assert [n for n in NAMES if ALGORITHMS[n].uses_log_z] == ["flowrl"]


@pytest.mark.parametrize("algorithm", NAMES)
def test_on_policy_loss_and_gradient(algorithm):
    run = make_run(algorithm)
    rollout = roll_out(run)
    check(run, Oracle(run, rollout), run.prepare(rollout))


@pytest.mark.parametrize("algorithm", [n for n in NAMES if n != "kl_reinforce"])
def test_off_policy_loss_and_gradient(algorithm):
    """The policy has moved since the samples were drawn: clips and weights act."""
    run = make_run(algorithm)
    rollout = roll_out(run)
    oracle, batch = Oracle(run, rollout), run.prepare(rollout)
    shake(run, seed=7, size=2.0)
    oracle.catch_up(run)
    ratios = (oracle.log_probs() - torch.tensor(oracle.old)).exp()
    assert ((ratios < 0.9) | (ratios > 1.3)).any() and (ratios > 3).any()
    check(run, oracle, batch)


@pytest.mark.parametrize("importance", ["none", "clip", "raw", "max10"])
@pytest.mark.parametrize("length_normalize", [False, True])
@pytest.mark.parametrize("reward_form", ["raw", "group_normalized"])
def test_every_form_of_flowrl(importance, length_normalize, reward_form):
    run = make_run(
        "flowrl",
        importance=importance,
        reward_form=reward_form,
        length_normalize=length_normalize,
    )
    rollout = roll_out(run)
    oracle, batch = Oracle(run, rollout), run.prepare(rollout)
    shake(run, seed=7, size=2.0)
    oracle.catch_up(run)
    parts = check(run, oracle, batch)
    residuals, weights = oracle.flow_terms()
    torch.testing.assert_close(parts.residuals, residuals.detach().float())
    torch.testing.assert_close(parts.log_z, oracle.log_z.detach().float())
    assert (weights.max() > 10) == (importance == "raw")


def test_importance_modes_differ_only_off_policy():
    """One update on a batch weighs by 1, whatever the mode; the second does not."""
    modes = ("none", "clip", "raw", "max10")
    losses = {1: [], 2: []}
    for updates, seen in losses.items():
        for importance in modes:
            run = make_run(
                "flowrl",
                importance=importance,
                updates_per_batch=updates,
                steps=2,
                learning_rate=1.0,
                max_grad_norm=100.0,
            )
            seen.append(tuple(record.loss for record in run)[1:])
    assert len(set(losses[1])) == 1
    none, clip, raw, _ = losses[2]
    assert len({none, clip, raw}) == 3


@pytest.mark.parametrize("algorithm", NAMES)
def test_one_update_is_one_step_of_adam(algorithm):
    """Adam's first step: the rate times g / (|g| + ε), g scaled to the norm."""
    run = make_run(algorithm, max_grad_norm=0.05, learning_rate=0.01)
    rollout = roll_out(run)
    oracle, batch = Oracle(run, rollout), run.prepare(rollout)
    before = run.policy.logits.detach().clone()
    run._set_learning_rate(0)
    update = training_step(run.policy, run.optimizer, batch, run.algorithm)
    measured = measure(rollout, update, run.config)
    loss = oracle.loss()
    loss.backward()
    gradient = oracle.logits.grad
    norm = gradient.norm().item()
    assert norm > 0.05
    assert measured["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert measured["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-7)
    gradient = gradient * 0.05 / (norm + 1e-6)
    step = (before - run.policy.logits.detach()).double()
    clear = gradient.abs() > 1e-5
    expected = 0.01 * gradient / (gradient.abs() + 1e-8)
    assert clear.sum() > 6
    torch.testing.assert_close(step[clear], expected[clear], rtol=1e-3, atol=1e-6)
    unseen = torch.ones_like(clear)
    for row in oracle.rows:
        for prompt, prefix, _ in row:
            unseen[prompt, prefix] = False
    assert bool((step[unseen] == 0).all())


def test_vargrad_explains_its_residuals():
    run = make_run("vargrad")
    rollout = roll_out(run)
    oracle = Oracle(run, rollout)
    parts = check(run, oracle, run.prepare(rollout))
    now, reference, _ = oracle.sequence()
    ratios = 4.0 * torch.tensor(oracle.rewards) + reference - now
    log_z = ratios.detach().view(PROMPTS, GROUP).mean(1)
    torch.testing.assert_close(parts.log_z, log_z.float())
    residuals = log_z.repeat_interleave(GROUP) - ratios.detach()
    torch.testing.assert_close(parts.residuals, residuals.float())
    torch.testing.assert_close(parts.residuals.square().mean(), parts.loss.detach())


def test_shaped_rewards():
    raw, scored = (
        make_run("flowrl", reward_form=form) for form in ("raw", "group_normalized")
    )
    rollout = roll_out(raw)
    assert torch.equal(shaped_rewards(rollout, raw.config), rollout.rewards)
    expected = torch.tensor(Oracle(raw, rollout).z_scores())
    torch.testing.assert_close(shaped_rewards(rollout, scored.config), expected)


def test_the_control_and_flowrl_pull_the_same_way():
    """In expectation ∇kl_reinforce = ∇TB / 2β; here over one exhaustive group."""
    gradients = {}
    for algorithm in ("vargrad", "kl_reinforce"):
        run = make_run(algorithm, num_generations=9, kl_coef=1 / 4.0)
        with torch.no_grad():
            run.policy.logits.zero_()  # every word once: exactly the expectation
        answers = [run.task.answers(text) for text in run.task.prompts("train")]
        rollout = roll_out(run)
        rollout = type(rollout)(
            rollout.prompts,
            9,
            torch.cat([a.completion_ids for a in answers]),
            torch.cat([a.completion_mask for a in answers]),
            torch.full((18, LENGTH), -math.log(VOCAB)),
            torch.full((18, LENGTH), -math.log(VOCAB)),
            torch.cat([a.rewards for a in answers]),
        )
        parts = find_loss(run, run.prepare(rollout))
        parts.loss.backward()
        gradients[algorithm] = run.policy.logits.grad
    # leaving one out of 9 stretches the advantage by 9/8
    torch.testing.assert_close(
        gradients["kl_reinforce"] * 8 / 9, gradients["vargrad"] / (2 * 4.0)
    )


# ------------------------------------------------------------ where log Z comes from


def log_z_of(run: Run, rollout):
    """The log Z that the loss used, and the loss's parts."""
    return find_loss(run, run.prepare(rollout))


@pytest.mark.parametrize("length_normalize", [False, True])
@pytest.mark.parametrize("reward_form", ["raw", "group_normalized"])
def test_flowrl_with_the_batchs_log_z_is_vargrad(length_normalize, reward_form):
    form = {"reward_form": reward_form, "length_normalize": length_normalize}
    run = make_run("flowrl", log_z="vargrad", importance="none", **form)
    rollout = roll_out(run)
    assert "log_z" not in run.modules
    parts = log_z_of(run, rollout)
    means = parts.residuals.view(PROMPTS, GROUP).mean(1)
    torch.testing.assert_close(means, torch.zeros(PROMPTS), atol=1e-5, rtol=0)
    # no other log Z makes the squares smaller
    for shift in (-0.1, 0.1):
        assert ((parts.residuals + shift) ** 2).mean() > parts.loss
    if not length_normalize:
        twin = make_run("vargrad", reward_form=reward_form)
        other = find_loss(twin, twin.prepare(rollout))
        torch.testing.assert_close(parts.loss, other.loss)
        for one, loss in ((run, parts.loss), (twin, other.loss)):
            loss.backward()
            assert one.policy.logits.grad.abs().max() > 1e-3
        torch.testing.assert_close(run.policy.logits.grad, twin.policy.logits.grad)


def test_a_log_z_that_nothing_learns():
    kinds = ("constant", "frozen", "random")
    seen = {}
    for kind in kinds:
        run = make_run("flowrl", log_z=kind, log_z_value=3.0)
        assert "log_z" not in run.modules
        rollout = roll_out(run)
        first = log_z_of(run, rollout).log_z
        run.step = 1
        seen[kind] = (first, log_z_of(run, rollout).log_z)
    assert seen["constant"][0].tolist() == [3.0, 3.0]
    assert seen["constant"][0].equal(seen["constant"][1])
    assert seen["frozen"][0].equal(seen["frozen"][1])
    assert not seen["random"][0].equal(seen["random"][1])
    for kind in ("frozen", "random"):
        assert len(set(seen[kind][0].tolist())) == PROMPTS  # each prompt has its own


@pytest.mark.parametrize("kind", ["vargrad", "constant", "frozen", "random"])
def test_runs_without_a_learned_log_z_train_and_resume(kind, tmp_path):
    run = make_run("flowrl", log_z=kind, steps=4)
    whole = [record.loss for record in Run(run.config)]
    half = Run(run.config, folder=tmp_path / "run", save_every=2)
    for record in half:
        if record.step == 2:
            break
    rest = [record.loss for record in Run.load(tmp_path / "run")]
    assert rest == whole[3:]
    assert math.isnan(half.records[0].exact.log_z_learned)


def test_a_table_has_no_states_to_attach_log_z_to():
    with pytest.raises(ValueError, match=r"log_z.*'attached'.*Fix: set log_z"):
        make_run("flowrl", log_z="attached")
