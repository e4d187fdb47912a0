# The one source of assignment 1.  `python -m flowrl_lab assign build` makes from it the
# student notebook, the solved one and the grading bundle; see INSTRUCTORS.md.

# %% [markdown]
# # Assignment 1: Partition functions
#
# **You will** compute $\log Z$ exactly, bound it, estimate it from samples, and learn it,
# on a landscape that no lesson has shown; and argue what a learned $\log Z$ tells.
#
# **You need** [notebook 2](../../02_partition_function.ipynb) and
# [notebook 3](../../03_trajectory_balance.ipynb). **It takes** 2 to 4 hours; no cell runs
# for more than 10 seconds on a CPU.
#
# **How it is marked.** 44 points come from hidden tests of your functions, your numbers and
# your trained policy, 8 from your argued answer. Your functions are called by name, so keep
# their names and arguments; where they stand, and in which cells, does not matter. Write
# them with `torch` and `math` only: flowrl_lab is not there when they are marked.
#
# This is variant {{variant}}. Work through it from top to bottom; each check below a
# function tells you what it can about a mistake, and the checks cost nothing.

# %%
import flowrl_lab
from flowrl_lab.assignments import open_assignment

session = flowrl_lab.setup(seed=0)
assignment = open_assignment("1_partition_functions.json")
assignment.questions()

# %% [markdown]
# ## Your landscape
#
# One prompt with some dozens of answers: a reward for each, and the log-probability that the
# reference policy gives it. `reward_scale` is the paper's β.

# %%
import math

import torch

rewards = assignment.problem["rewards"]
ref_log_probs = assignment.problem["ref_log_probs"]
reward_scale = assignment.problem["reward_scale"]
print(f"{len(rewards)} answers, β = {reward_scale:g}, best reward "
      f"{rewards.max():.3f} at answer {rewards.argmax()}")

# %% hidden="problem"
### BEGIN HIDDEN TESTS
def make_landscape(draw):
    """Some bumps of unequal width and height on 48 states, and an uneven reference."""
    states = torch.arange(48, dtype=torch.float64)
    rewards = torch.zeros(48, dtype=torch.float64)
    start = 3 + draw.whole(1, below=4).item()
    for centre in range(start, 48, 11):
        height = 0.7 + 0.3 * draw.uniform(1).item()
        width = 1.5 + 2.0 * draw.uniform(1).item()
        bump = height * torch.exp(-((states - centre) ** 2) / (2 * width**2))
        rewards = torch.maximum(rewards, bump)
    rewards = (rewards * 1000).round() / 1000
    reference = (draw.log_probs(48, spread=0.6) * 1000).round() / 1000
    return rewards, reference.log_softmax(-1)


problem["rewards"], problem["ref_log_probs"] = make_landscape(variant_draw)
problem["reward_scale"] = float(variant_draw.pick(6, 7, 8, 9, 10))
### END HIDDEN TESTS

# %% [markdown]
# ## 1. The exact log Z (5 points)
#
# $$\log Z = \log \sum_y \pi_{\text{ref}}(y)\, e^{\beta r(y)}$$
#
# The last axis runs over the answers; any axes before it are prompts, and stay. It has to
# survive β = 2000.

# %% question="log_partition"
def log_partition(ref_log_probs, rewards, reward_scale):
    """log Z over the last axis, nats: [..., N], [..., N] -> [...]."""
    ### BEGIN SOLUTION
    return (ref_log_probs + reward_scale * rewards).logsumexp(-1)
    ### END SOLUTION

# %% check="log_partition"
assignment.check("log_partition", log_partition)

# %% hidden="log_partition"
### BEGIN HIDDEN TESTS
def answers(draw, *shape):
    return draw.log_probs(*shape), draw.uniform(*shape)


def answers_and_scale(draw, *shape):
    return call(*answers(draw, *shape), draw.pick(2.5, 3.0, 4.5))


function(
    "log_partition",
    "The exact log Z",
    visible=[
        answers_and_scale(open_draw, 6),
        answers_and_scale(open_draw, 3, 5),
        call(*answers(open_draw, 4), 2000.0),
    ],
    tests=[
        Test("one prompt", 2, [answers_and_scale(hidden_draw, 9),
                               answers_and_scale(hidden_draw, 30)]),
        Test("several prompts at once", 2, [answers_and_scale(hidden_draw, 2, 7),
                                            answers_and_scale(hidden_draw, 2, 3, 4)]),
        Test("a large β overflows nothing", 1,
             [call(*answers(hidden_draw, 5), 3000.0)]),
    ],
    slips=[
        Slip("no reference", "The reference is missing: Z sums π_ref · exp(β r).",
             lambda ref, r, scale: (scale * r).logsumexp(-1)),
        Slip("a mean", "You took the mean of exp(β r). Each answer weighs π_ref(y) "
             "instead of 1/N.",
             lambda ref, r, scale: (scale * r).logsumexp(-1) - math.log(r.shape[-1])),
        Slip("no scale", "β has no effect in your function.",
             lambda ref, r, scale: (ref + r).logsumexp(-1)),
        Slip("over all", "You summed over all axes. The axes before the last are "
             "prompts, each with a log Z of its own: sum over dim −1.",
             lambda ref, r, scale: (ref + scale * r).flatten().logsumexp(0)),
        Slip("overflow", "exp(2000) is infinite: add up with logsumexp.",
             lambda ref, r, scale: (ref.exp() * (scale * r).exp()).sum(-1).log()),
        Slip("no log", "That is Z. Its logarithm was asked for.",
             lambda ref, r, scale: (ref + scale * r).logsumexp(-1).exp()),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 2. The target (4 points)
#
# $\log p^*(y) = \log \pi_{\text{ref}}(y) + \beta r(y) - \log Z$. A reward of $-\infty$
# forbids an answer: its log-probability is then $-\infty$, and the others still sum to 1.

# %% question="target_log_probs"
def target_log_probs(ref_log_probs, rewards, reward_scale):
    """log p* over the last axis, normalised: [..., N], [..., N] -> [..., N]."""
    ### BEGIN SOLUTION
    return (ref_log_probs + reward_scale * rewards).log_softmax(-1)
    ### END SOLUTION

# %% check="target_log_probs"
assignment.check("target_log_probs", target_log_probs)

# %% hidden="target_log_probs"
### BEGIN HIDDEN TESTS
def forbidden(draw):
    reference, reward = answers(draw, 6)
    reward[2] = -math.inf
    return call(reference, reward, 2.0)


function(
    "target_log_probs",
    "The target distribution",
    visible=[answers_and_scale(open_draw, 6), answers_and_scale(open_draw, 2, 5),
             forbidden(open_draw)],
    tests=[
        Test("one prompt", 1, [answers_and_scale(hidden_draw, 8)]),
        Test("several prompts at once", 1, [answers_and_scale(hidden_draw, 3, 6)]),
        Test("forbidden answers", 1, [forbidden(hidden_draw)]),
        Test("a large β overflows nothing", 1,
             [call(*answers(hidden_draw, 7), 2500.0)]),
    ],
    slips=[
        Slip("probabilities", "These are probabilities; their logarithms were asked for.",
             lambda ref, r, scale: (ref + scale * r).softmax(-1)),
        Slip("not normalised", "Not normalised: subtract log Z.",
             lambda ref, r, scale: ref + scale * r),
        Slip("no reference", "The reference is missing.",
             lambda ref, r, scale: (scale * r).log_softmax(-1)),
        Slip("first axis", "Normalised over the wrong axis: the answers are the last.",
             lambda ref, r, scale: (ref + scale * r).log_softmax(0)),
        Slip("divided", "You divided the reward by β: it multiplies.",
             lambda ref, r, scale: (ref + r / scale).log_softmax(-1)),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 3. The bound (5 points)
#
# A policy that never reaches the target can still say something about $\log Z$:
#
# $$\text{ELBO}(\pi) = \mathbb{E}_{y \sim \pi}\big[\beta r + \log \pi_{\text{ref}} - \log \pi\big]
# = \log Z - \mathrm{KL}(\pi \,\|\, p^*)$$
#
# Compute it exactly, by summing over all answers. An answer that the policy never gives
# (log-probability $-\infty$) adds nothing.

# %% question="elbo"
def elbo(log_probs, ref_log_probs, rewards, reward_scale):
    """The ELBO over the last axis, nats: three times [..., N] -> [...]."""
    ### BEGIN SOLUTION
    never = torch.isneginf(log_probs)
    ratio = reward_scale * rewards + ref_log_probs - log_probs.masked_fill(never, 0.0)
    return (log_probs.exp() * ratio).sum(-1)
    ### END SOLUTION

# %% check="elbo"
assignment.check("elbo", elbo)

# %% hidden="elbo"
### BEGIN HIDDEN TESTS
def policy_case(draw, *shape):
    return call(draw.log_probs(*shape), *answers(draw, *shape), draw.pick(2.0, 3.5))


def never_case(draw):
    policy = draw.log_probs(6)
    policy[draw.whole(1, below=6)] = -math.inf
    return call(policy.log_softmax(-1), *answers(draw, 6), 3.0)


def right_elbo(log_probs, ref, r, scale):
    never = torch.isneginf(log_probs)
    return (log_probs.exp() * (scale * r + ref - log_probs.masked_fill(never, 0.0))).sum(-1)


function(
    "elbo",
    "The evidence lower bound",
    visible=[policy_case(open_draw, 5), policy_case(open_draw, 2, 6),
             never_case(open_draw)],
    tests=[
        Test("one prompt", 2, [policy_case(hidden_draw, 9), policy_case(hidden_draw, 4)]),
        Test("several prompts at once", 1, [policy_case(hidden_draw, 3, 4)]),
        Test("answers that the policy never gives", 2, [never_case(hidden_draw)]),
    ],
    slips=[
        Slip("sign of the entropy", "The sign of log π is turned round: what is certain "
             "(low entropy) costs.",
             lambda p, ref, r, scale: right_elbo(p, ref, r, scale)
             + 2 * (p.exp() * p.masked_fill(torch.isneginf(p), 0.0)).sum(-1)),
        Slip("0 · ∞", "0 · ∞ is NaN: where the policy never goes, put 0 in the place of "
             "log π before you multiply.",
             lambda p, ref, r, scale: (p.exp() * (scale * r + ref - p)).sum(-1)),
        Slip("under the reference", "The expectation is under π, not under π_ref.",
             lambda p, ref, r, scale: (ref.exp() * (scale * r + ref - p)).sum(-1)),
        Slip("a mean", "You averaged over the answers as if they were equally likely. "
             "Weigh each with π(y).",
             lambda p, ref, r, scale: (scale * r + ref - p).mean(-1)),
        Slip("the true log Z", "That is log Z itself; it does not depend on the policy.",
             lambda p, ref, r, scale: (ref + scale * r).logsumexp(-1)),
        Slip("no reference", "log π_ref is missing.",
             lambda p, ref, r, scale: right_elbo(p, 0 * ref, r, scale)),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4. The slope of log Z (4 points)
#
# How fast does $\log Z$ grow with β? Derive $\mathrm{d} \log Z / \mathrm{d} β$ on paper; the
# result is an expectation that you know. Write it without autograd and without finite
# differences.

# %% question="log_z_slope"
def log_z_slope(ref_log_probs, rewards, reward_scale):
    """d log Z / dβ over the last axis: [..., N], [..., N] -> [...]."""
    ### BEGIN SOLUTION
    chances = (ref_log_probs + reward_scale * rewards).softmax(-1)
    return (chances * rewards).sum(-1)
    ### END SOLUTION

# %% check="log_z_slope"
assignment.check("log_z_slope", log_z_slope)

# %% hidden="log_z_slope"
### BEGIN HIDDEN TESTS
function(
    "log_z_slope",
    "The slope of log Z over β",
    visible=[answers_and_scale(open_draw, 6), answers_and_scale(open_draw, 2, 5)],
    tests=[
        Test("one prompt", 2, [answers_and_scale(hidden_draw, 7),
                               call(*answers(hidden_draw, 5), 0.0)]),
        Test("several prompts at once", 1, [answers_and_scale(hidden_draw, 4, 3)]),
        Test("a large β overflows nothing", 1,
             [call(*answers(hidden_draw, 6), 2000.0)]),
    ],
    slips=[
        Slip("under the reference", "That is the mean reward of π_ref: the slope at "
             "β = 0 only. Which distribution weighs the answers at this β?",
             lambda ref, r, scale: (ref.exp() * r).sum(-1)),
        Slip("times β", "One β too many: the derivative of β r by β is r.",
             lambda ref, r, scale: scale * ((ref + scale * r).softmax(-1) * r).sum(-1)),
        Slip("divided by Z only", "Each term keeps its weight π_ref · exp(β r) / Z.",
             lambda ref, r, scale: ((scale * r).softmax(-1) * r).sum(-1)),
        Slip("variance", "That is the second derivative, a variance.",
             lambda ref, r, scale: ((ref + scale * r).softmax(-1) * r**2).sum(-1)
             - ((ref + scale * r).softmax(-1) * r).sum(-1) ** 2),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 5. From samples (5 points)
#
# Where the answers cannot be listed, log Z is estimated from samples $y_i \sim \pi$. The
# importance-sampled estimate is unbiased for $Z$:
#
# $$\log \hat Z = \log \frac1G \sum_i \exp\big(\beta r_i + \log \pi_{\text{ref}}(y_i) -
# \log \pi(y_i)\big)$$
#
# The samples of one prompt stand in contiguous rows, `num_generations` each.

# %% question="estimate_log_z"
def estimate_log_z(log_probs, ref_log_probs, rewards, num_generations,
                   reward_scale):
    """One estimate a prompt: [B] three times -> [B / num_generations], nats."""
    ### BEGIN SOLUTION
    ratios = reward_scale * rewards + ref_log_probs - log_probs
    groups = ratios.view(-1, num_generations)
    return groups.logsumexp(1) - math.log(num_generations)
    ### END SOLUTION

# %% check="estimate_log_z"
assignment.check("estimate_log_z", estimate_log_z)

# %% hidden="estimate_log_z"
### BEGIN HIDDEN TESTS
def sampled(draw, prompts, group, scale):
    rows = prompts * group
    return call(-3 * draw.uniform(rows), -3 * draw.uniform(rows), draw.uniform(rows),
                group, scale)


def grouped(p, ref, r, group, scale):
    return (scale * r + ref - p).view(-1, group)


function(
    "estimate_log_z",
    "The importance-sampled log Z",
    visible=[sampled(open_draw, 3, 2, 2.0), sampled(open_draw, 2, 4, 3.0)],
    tests=[
        Test("one prompt", 2, [sampled(hidden_draw, 1, 5, 2.5)]),
        Test("several prompts", 2, [sampled(hidden_draw, 4, 3, 2.0),
                                    sampled(hidden_draw, 2, 6, 3.0)]),
        Test("a large β overflows nothing", 1, [sampled(hidden_draw, 2, 3, 2000.0)]),
    ],
    slips=[
        Slip("mean of logs", "You averaged the logarithms: that is VarGrad's estimate, a "
             "lower bound. Here the *weights* are averaged, then comes the log.",
             lambda p, ref, r, g, scale: grouped(p, ref, r, g, scale).mean(1)),
        Slip("a sum", "You summed the weights. Subtract log G.",
             lambda p, ref, r, g, scale: grouped(p, ref, r, g, scale).logsumexp(1)),
        Slip("across prompts", "You mixed the prompts: the samples of one prompt are "
             "contiguous rows, .view(-1, num_generations).",
             lambda p, ref, r, g, scale: grouped(p, ref, r, g, scale).reshape(g, -1)
             .logsumexp(0) - math.log(g)),
        Slip("ratio turned round", "The ratio is turned round: π_ref / π.",
             lambda p, ref, r, g, scale: grouped(ref, p, r, g, scale).logsumexp(1)
             - math.log(g)),
        Slip("no ratio", "Without π_ref / π, samples of π estimate something else.",
             lambda p, ref, r, g, scale: grouped(0 * p, 0 * ref, r, g, scale)
             .logsumexp(1) - math.log(g)),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 6. A learned log Z (5 points)
#
# With the policy held still, trajectory balance trains $\log Z$ by gradient descent on
# $\frac1B \sum_i (\log Z - c_i)^2$, $c_i = \beta r_i + \log \pi_{\text{ref}}(y_i) - \log
# \pi(y_i)$. Start at 0, take `steps` steps of `learning_rate` on all samples, without an
# optimiser, and return where you end.

# %% question="learn_log_z"
def learn_log_z(ratios, steps, learning_rate):
    """log Z, a scalar, by gradient descent from 0; `ratios` [B] are the c_i."""
    ### BEGIN SOLUTION
    log_z = torch.zeros((), dtype=ratios.dtype)
    for _ in range(steps):
        log_z = log_z - learning_rate * 2 * (log_z - ratios).mean()
    return log_z
    ### END SOLUTION

# %% check="learn_log_z"
assignment.check("learn_log_z", learn_log_z)

# %% hidden="learn_log_z"
### BEGIN HIDDEN TESTS
def descent(factor, sign=1):
    def run(c, steps, rate):
        log_z = torch.zeros((), dtype=c.dtype)
        for _ in range(steps):
            log_z = log_z - sign * rate * factor * (log_z - c).mean()
        return log_z

    return run


function(
    "learn_log_z",
    "log Z by gradient descent",
    visible=[call(3 * open_draw.uniform(6), 3, 0.1),
             call(3 * open_draw.uniform(4), 1, 0.2)],
    tests=[
        Test("a few steps", 2, [call(4 * hidden_draw.uniform(5), 4, 0.1),
                                call(-2 * hidden_draw.uniform(7), 2, 0.3)]),
        Test("many steps", 2, [call(2 * hidden_draw.uniform(5), 200, 0.1)]),
        Test("no step at all", 1, [call(hidden_draw.uniform(3), 0, 0.1)]),
    ],
    slips=[
        Slip("half the gradient", "Half as far as asked: the derivative of the square "
             "brings a factor 2.", descent(1)),
        Slip("uphill", "You go uphill: subtract the gradient.", descent(2, -1)),
        Slip("the optimum", "That is where descent would end after very many steps. "
             "Return where it *is* after `steps`.", lambda c, steps, rate: c.mean()),
        Slip("sum", "You summed over the samples: the loss is their mean.",
             lambda c, steps, rate: descent(2 * len(c))(c, steps, rate)),
        Slip("one step", "You took one step, whatever `steps` says.",
             lambda c, steps, rate: descent(2)(c, 1, rate)),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 7. Your numbers (7 points)
#
# Use your functions on *your* landscape. Write plain numbers with at least three digits
# after the point; nothing that has to be computed.
#
# - `LOG_Z`: the exact $\log Z$ at your β.
# - `REFERENCE_GAP`: how far the ELBO of the reference policy itself lies below it.
# - `SCALE_FOR_80`: the β at which the mean reward under $p^*$ reaches 80 % of the best
#   reward (two digits after the point are enough).

# %% question="LOG_Z REFERENCE_GAP SCALE_FOR_80"
LOG_Z = None  # your number here
REFERENCE_GAP = None  # your number here
SCALE_FOR_80 = None  # your number here

# %% check="LOG_Z"
assignment.check("LOG_Z", LOG_Z)

# %% check="REFERENCE_GAP"
assignment.check("REFERENCE_GAP", REFERENCE_GAP)

# %% check="SCALE_FOR_80"
assignment.check("SCALE_FOR_80", SCALE_FOR_80)

# %% hidden="numbers"
### BEGIN HIDDEN TESTS
def find_scale(rewards, reference, share):
    low, high = 0.0, 500.0
    for _ in range(80):
        middle = (low + high) / 2
        reached = log_z_slope(reference, rewards, middle) >= share * rewards.max()
        low, high = (low, middle) if reached else (middle, high)
    return high


exact_log_z = log_partition(
    problem["ref_log_probs"], problem["rewards"], problem["reward_scale"]
).item()
reference_elbo = elbo(
    problem["ref_log_probs"], problem["ref_log_probs"], problem["rewards"],
    problem["reward_scale"],
).item()
number("LOG_Z", "log Z of your landscape", points=2, value=exact_log_z,
       tolerance=0.006)
number("REFERENCE_GAP", "the gap of the reference's bound", points=2,
       value=exact_log_z - reference_elbo, tolerance=0.006)
number("SCALE_FOR_80", "the β of 80 % reward", points=3,
       value=find_scale(problem["rewards"], problem["ref_log_probs"], 0.8),
       tolerance=0.03)
### END HIDDEN TESTS

# %% [markdown]
# ## 8. A policy that matches (9 points)
#
# Train a softmax policy on your landscape: one logit an answer, and one log Z, by trajectory
# balance **from samples** (at most 256 an update). Save both; the instructor's referee
# computes the divergence from your logits. Marks: 3 for KL(π‖p*) ≤ 0.3, 3 more for ≤ 0.03
# nats, 3 for a log Z within 0.1 of the exact one.
#
# The cell below gives the frame: write `train_policy`, which returns logits [N] and log Z.

# %% question="landscape_policy"
def train_policy(ref_log_probs, rewards, reward_scale, seed=0):
    """Trajectory balance from samples: (logits [N], log_z scalar), detached."""
    ### BEGIN SOLUTION
    generator = torch.Generator().manual_seed(seed)
    logits = ref_log_probs.float().clone().requires_grad_()
    log_z = torch.zeros((), requires_grad=True)
    adam = torch.optim.Adam(
        [{"params": [logits], "lr": 0.1}, {"params": [log_z], "lr": 0.3}]
    )
    decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.01, 600)
    for _ in range(600):
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.detach().exp().multinomial(256, True, generator=generator)
        ratio = log_probs[chosen] - ref_log_probs[chosen].float()
        residual = log_z + ratio - reward_scale * rewards[chosen].float()
        adam.zero_grad()
        residual.square().mean().backward()
        adam.step()
        decay.step()
    return logits.detach(), log_z.detach()
    ### END SOLUTION

# %%
from safetensors.torch import save_file

with assignment.attempt():
    logits, log_z = train_policy(ref_log_probs, rewards, reward_scale)
    save_file({"logits": logits.float(), "log_z": log_z.float().reshape(1)},
              "landscape_policy.safetensors")
    p_star = target_log_probs(ref_log_probs, rewards, reward_scale)
    log_pi = logits.double().log_softmax(-1)
    print(f"KL(π‖p*) = {(log_pi.exp() * (log_pi - p_star)).sum():.4f} nats, "
          f"log Z = {log_z.item():.3f}")

# %% check="landscape_policy"
assignment.check_files("landscape_policy")

# %% hidden="landscape_policy"
### BEGIN HIDDEN TESTS
def judge_policy(files):
    from flowrl_lab.assignments.marking.referee import read_tensors

    found = read_tensors(
        files["landscape_policy.safetensors"], {"logits": (48,), "log_z": (1,)}
    )
    log_pi = found["logits"].double().log_softmax(-1)
    p_star = target_log_probs(
        problem["ref_log_probs"], problem["rewards"], problem["reward_scale"]
    )
    kl = (log_pi.exp() * (log_pi - p_star)).sum().item()
    off = abs(found["log_z"].item() - exact_log_z)
    return [
        (float(kl <= 0.3), f"KL(π‖p*) = {kl:.3f} nats"),
        (float(kl <= 0.03), f"KL(π‖p*) = {kl:.3f} nats"),
        (float(off <= 0.1), f"log Z is {off:.3f} nats off"),
    ]


recorded(
    "landscape_policy",
    "The trained policy",
    files=["landscape_policy.safetensors"],
    judge=judge_policy,
    parts=[("KL(π‖p*) at most 0.3 nats", 3), ("KL(π‖p*) at most 0.03 nats", 3),
           ("log Z within 0.1 nats of the exact one", 3)],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 9. An argued answer (8 points)
#
# A colleague watches your run and says: "Your learned log Z has been growing for 200 steps,
# so the rewards that the policy collects have been growing too." In at most 200 words: what
# does the learned log Z converge to while the policy moves, and which two things can make it
# grow? Use a number of *your* landscape to show that the colleague's conclusion does not
# follow. Would training have failed if log Z had been held at 0, on-policy? Why?

# %% [markdown] argued="argument"
# ### BEGIN SOLUTION
# The learned log Z follows the ELBO, log Z − KL(π‖p*). It can grow because the expected
# reward E_π[β r] grows, or because π gets closer to the reference or keeps more entropy:
# the bound is E_π[β r] − KL(π‖π_ref). On my landscape the bound of the reference policy lies
# below log Z by the gap computed above; all of this can be closed with little reward gained,
# and a policy on the single best answer has the highest reward of all and a *lower* bound
# than p*. On-policy and in expectation log Z is only a baseline: Σ_y π ∇log π = 0, so any
# constant gives the same expected gradient. With 0 training does not fail, but the noise of
# the gradient is far larger, since every residual carries the missing log Z.
# ### END SOLUTION

# %% hidden="argument"
### BEGIN HIDDEN TESTS
argued(
    "argument",
    "What a learned log Z tells",
    points=8,
    rubric=[
        "2: the learned log Z tracks the ELBO, log Z − KL(π‖p*), not log Z",
        "2: names reward *and* closeness to the reference (entropy) as causes",
        "2: a number of the own landscape that shows the conclusion does not follow",
        "2: a constant log Z is a baseline (same expected gradient), with more noise",
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## Hand in
#
# Save the notebook (Ctrl+S), then run this cell: it writes one file with your notebook and
# your policy. Put your name in if your course asks for one.

# %%
assignment.submit(student=assignment.student or "your name")
