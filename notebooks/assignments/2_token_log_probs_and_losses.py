# The one source of assignment 2.  `python -m flowrl_lab assign build` makes from it the
# student notebook, the solved one and the grading bundle; see INSTRUCTORS.md.

# %% [markdown]
# # Assignment 2: Token log-probs and losses
#
# **You will** write the parts that every trainer stands on: gather, masking, advantages, a
# matching loss and a clipped loss; then write **your own tests**, and find with them which
# losses of a small zoo are broken.
#
# **You need** [notebook 4](../../04_token_log_probs.ipynb),
# [notebook 5](../../05_reward_maximisers.ipynb) and
# [notebook 6](../../06_flowrl_loss.ipynb). **It takes** 3 to 4 hours; every cell runs in a
# second on a CPU.
#
# **How it is marked.** 54 points come from hidden tests, 18 of them by *mutation*: your own
# tests are run on right losses, which they must accept, and on wrong ones, which they must
# reject. 6 points come from your argued answer. Your functions are called by name, so keep
# their names and the order of their arguments. Write them with `torch` only: flowrl_lab is
# not there when they are marked.
#
# This is variant {{variant}}.

# %%
import flowrl_lab
from flowrl_lab.assignments import open_assignment

session = flowrl_lab.setup(seed=0)
assignment = open_assignment("2_token_log_probs_and_losses.json")
assignment.questions()

# %% [markdown]
# Shapes: B sequences of at most T tokens, V tokens in the vocabulary. `mask` [B, T] is True
# where a token counts; what stands in the padding is *anything*, NaN included.

# %%
import torch

# %% [markdown]
# ## 1. Gather (4 points)
#
# The log-probability of each token that was written, at a temperature. Logits may be as large
# as ±10,000.

# %% question="token_log_probs"
def token_log_probs(logits, token_ids, temperature):
    """log π of the written tokens: [B, T, V], [B, T] -> [B, T], nats."""
    ### BEGIN SOLUTION
    log_probs = (logits / temperature).log_softmax(-1)
    return log_probs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    ### END SOLUTION

# %% check="token_log_probs"
assignment.check("token_log_probs", token_log_probs)

# %% hidden="token_log_probs"
### BEGIN HIDDEN TESTS
def text(draw, rows, length, vocabulary, temperature, spread=2.0):
    logits = draw.uniform(rows, length, vocabulary, low=-spread, high=spread)
    return call(logits, draw.whole(rows, length, below=vocabulary), temperature)


def gathered(values, ids):
    return values.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


function(
    "token_log_probs",
    "Gather",
    gradients=[0],
    visible=[text(open_draw, 2, 3, 5, 1.0), text(open_draw, 3, 2, 4, 0.6)],
    tests=[
        Test("temperature 1", 1, [text(hidden_draw, 3, 4, 6, 1.0)]),
        Test("other temperatures", 2, [text(hidden_draw, 2, 3, 5, 0.7),
                                       text(hidden_draw, 2, 3, 5, 2.0)]),
        Test("very large logits", 1, [text(hidden_draw, 2, 2, 4, 1.0, 10_000.0)]),
    ],
    slips=[
        Slip("no temperature", "The temperature has no effect: divide the *logits*.",
             lambda x, ids, t: gathered(x.log_softmax(-1), ids)),
        Slip("temperature after", "You divided the log-probs. Divide the logits, then "
             "normalise.", lambda x, ids, t: gathered(x.log_softmax(-1), ids) / t),
        Slip("not normalised", "These are logits: normalise them with log_softmax.",
             lambda x, ids, t: gathered(x / t, ids)),
        Slip("probabilities", "These are probabilities: log-probs were asked for.",
             lambda x, ids, t: gathered((x / t).softmax(-1), ids)),
        Slip("multiplied", "You multiplied by the temperature.",
             lambda x, ids, t: gathered((x * t).log_softmax(-1), ids)),
        Slip("detached", "The values are right, but no gradient reaches the logits.",
             lambda x, ids, t: gathered((x / t).log_softmax(-1), ids).detach()),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 2. The mean over tokens that count (4 points)
#
# One mean for each sequence. Neither its value nor its gradient may depend on the padding.

# %% question="masked_mean"
def masked_mean(values, mask):
    """Mean over the tokens that count: [B, T], [B, T] bool -> [B]."""
    ### BEGIN SOLUTION
    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)
    ### END SOLUTION

# %% check="masked_mean"
assignment.check("masked_mean", masked_mean)

# %% hidden="masked_mean"
### BEGIN HIDDEN TESTS
def padded(draw, rows, length, filling=None):
    values, mask = draw.uniform(rows, length, low=-2), draw.mask(rows, length)
    if filling is not None:
        values = values.masked_fill(~mask, filling)
    return call(values, mask)


function(
    "masked_mean",
    "The mean over tokens that count",
    gradients=[0],
    visible=[padded(open_draw, 3, 4), padded(open_draw, 2, 3, float("nan"))],
    tests=[
        Test("padding that holds numbers", 2, [padded(hidden_draw, 4, 5)]),
        Test("padding that holds NaN or infinity", 2,
             [padded(hidden_draw, 3, 5, float("nan")),
              padded(hidden_draw, 3, 4, float("inf"))]),
    ],
    slips=[
        Slip("divided by T", "You divided by T: divide by the tokens that count.",
             lambda v, m: v.masked_fill(~m, 0).mean(1)),
        Slip("no mask", "The padding is averaged in.", lambda v, m: v.mean(1)),
        Slip("a product", "0 · NaN is NaN: set the padding to 0 with masked_fill or "
             "torch.where instead of multiplying.",
             lambda v, m: (v * m).sum(1) / m.sum(1)),
        Slip("a sum", "That is the sum; divide by the tokens that count.",
             lambda v, m: v.masked_fill(~m, 0).sum(1)),
        Slip("the mask turned round", "You averaged the padding.",
             lambda v, m: v.masked_fill(m, 0).sum(1) / (~m).sum(1)),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 3. Group-normalised rewards (4 points)
#
# $\hat r = (r - \text{mean})/\text{std}$ inside each prompt's group of `num_generations`
# contiguous rows; std with G − 1. A group whose rewards are all equal gives zeros.

# %% question="group_advantages"
def group_advantages(rewards, num_generations):
    """z-scores inside each group: [B] -> [B]."""
    ### BEGIN SOLUTION
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(1, keepdim=True)
    equal = groups.amax(1, keepdim=True) == groups.amin(1, keepdim=True)
    std = groups.std(1, keepdim=True).masked_fill(equal, 1.0)
    return centred.masked_fill(equal, 0.0).div(std).flatten()
    ### END SOLUTION

# %% check="group_advantages"
assignment.check("group_advantages", group_advantages)

# %% hidden="group_advantages"
### BEGIN HIDDEN TESTS
def groups_of(draw, prompts, size, equal=False):
    rewards = draw.uniform(prompts * size)
    if equal:
        rewards[:size] = 0.3
    return call(rewards, size)


def z_scores(r, size, dim=1, correction=1, eps=0.0):
    groups = r.view(-1, size)
    std = groups.std(dim, correction=correction, keepdim=True) + eps
    return ((groups - groups.mean(dim, keepdim=True)) / std).flatten()


function(
    "group_advantages",
    "Group-normalised rewards",
    visible=[groups_of(open_draw, 3, 4), groups_of(open_draw, 2, 5, equal=True)],
    tests=[
        Test("several prompts", 2, [groups_of(hidden_draw, 4, 3),
                                    groups_of(hidden_draw, 2, 6)]),
        Test("a group of equal rewards", 2, [groups_of(hidden_draw, 3, 3, equal=True)]),
    ],
    slips=[
        Slip("std with G", "Your std divides by G; here it is G − 1.",
             lambda r, g: torch.nan_to_num(z_scores(r, g, correction=0), 0.0, 0.0, 0.0)
             if bool((r.view(-1, g).std(1) > 1e-9).all())
             else z_scores(r, g, correction=0, eps=1e-6)),
        Slip("whole batch", "You normalised the whole batch: every prompt has a group "
             "of its own.", lambda r, g: (r - r.mean()) / r.std()),
        Slip("across prompts", "You mixed the prompts: the samples of one prompt are "
             "contiguous rows.", lambda r, g: z_scores(r, g, dim=0)),
        Slip("not divided", "You subtracted the mean, and did not divide by the std.",
             lambda r, g: (r.view(-1, g) - r.view(-1, g).mean(1, keepdim=True)).flatten()),
        Slip("0 / 0", "Equal rewards give 0/0 or a division by a speck: those groups are "
             "0.", lambda r, g: z_scores(r, g)),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4. The matching loss (10 points)
#
# FlowRL's Eq. 6, as a mean over sequences, with the clip applied:
#
# $$w\,\Big(\log Z + \tfrac1{|y|} \log \pi - \beta r - \tfrac1{|y|} \log
# \pi_{\text{ref}}\Big)^2$$
#
# $$w = \mathrm{clip}\big(\pi/\pi_{\text{old}},\ 1-\varepsilon_l,\ 1+\varepsilon_h\big)$$
#
# The ratio in $w$ is of whole sequences, and $w$ carries no gradient. Gradients flow into
# `log_z` and `log_probs` only.

# %% question="matching_loss"
def matching_loss(log_z, log_probs, old_log_probs, ref_log_probs, rewards, mask,
                  reward_scale, clip_low, clip_high):
    """FlowRL's loss: [B], three [B, T], [B], [B, T] bool, numbers -> scalar."""
    ### BEGIN SOLUTION
    moved = (log_probs - old_log_probs).detach().masked_fill(~mask, 0.0).sum(1)
    weights = moved.exp().clamp(1 - clip_low, 1 + clip_high)
    gained = (log_probs - ref_log_probs.detach()).masked_fill(~mask, 0.0).sum(1)
    residuals = log_z + gained / mask.sum(1) - reward_scale * rewards.detach()
    return (weights * residuals.square()).mean()
    ### END SOLUTION

# %% check="matching_loss"
assignment.check("matching_loss", matching_loss)

# %% hidden="matching_loss"
### BEGIN HIDDEN TESTS
def off_policy(draw, rows, length, drift=0.4):
    """log Z, π, π_old, π_ref, rewards and mask: nothing is zero by accident."""
    log_probs = -0.4 - draw.uniform(rows, length)
    old = log_probs + drift * draw.uniform(rows, length, low=-1)
    return [draw.uniform(rows, low=-1), log_probs, old,
            -0.4 - draw.uniform(rows, length), draw.uniform(rows, low=-0.5),
            draw.mask(rows, length)]


def matching_case(draw, rows, length, drift=0.4, scale=3.0, low=0.2, high=0.3):
    return call(*off_policy(draw, rows, length, drift), scale, low, high)


def slipped(slip=""):
    """The matching loss with one slip in it."""

    def loss(log_z, p, old, ref, r, mask, scale, low, high):
        total = lambda x: x.masked_fill(~mask, 0.0).sum(1)
        log_ratio = total(p - old)
        if slip == "token ratio":
            log_ratio = log_ratio / mask.sum(1)
        ratio = log_ratio.exp()
        ratio = ratio if slip == "weight not detached" else ratio.detach()
        weights = ratio.clamp(1 - low, 1 + high)
        if slip == "clip not applied":
            weights = ratio
        if slip == "one clip":
            weights = ratio.clamp(1 - low, 1 + low)
        ref = ref if slip == "reference" else ref.detach()
        r = r.detach()
        lengths = mask.sum(1)
        if slip == "divided by T":
            lengths = mask.shape[1]
        if slip == "sums":
            lengths = 1
        if slip == "reference summed":
            log_pi = total(p) / lengths - total(ref)
        elif slip == "no mask":
            log_pi = (p - ref).mean(1)
        else:
            log_pi = total(p - ref) / lengths
        if slip == "ratio turned round":
            weights = (-log_ratio).exp().detach().clamp(1 - low, 1 + high)
        if slip == "reward divided":
            r = r / lengths
        if slip == "sign of the reward":
            r = -r
        if slip == "log Z cut":
            log_z = log_z.detach()
        residuals = log_z + log_pi - scale * r
        if slip == "log Z broadcast":
            residuals = log_z.unsqueeze(-1) + log_pi - scale * r
        losses = weights * residuals.square()
        if slip == "weighted mean":
            return losses.sum() / weights.sum()
        return losses.sum() if slip == "sum" else losses.mean()

    return loss


MATCHING_MESSAGES = {
    "clip not applied": "The clip has no effect: multiply by the *clipped* ratio.",
    "weight not detached": "The value is right, but w carries a gradient: detach it.",
    "token ratio": "The ratio in w is of whole sequences: sum the log-ratios, then exp.",
    "one clip": "The upper bound is 1 + clip_high.",
    "divided by T": "You averaged over padding: divide by the tokens that count.",
    "sums": "Both log-probs are means over the tokens that count.",
    "reference summed": "log π is averaged and log π_ref summed: average both.",
    "no mask": "The mask has no effect in the residual.",
    "reference": "The value is right, but a gradient flows into the reference.",
    "reward divided": "β r is not divided by |y|.",
    "sign of the reward": "The sign of the reward is turned round.",
    "log Z cut": "The value is right, but log Z gets no gradient.",
    "log Z broadcast": "[B, 1] against [B] broadcasts to [B, B]: all log Z meet all "
    "sequences.",
    "weighted mean": "You divided by the sum of the weights: it is a plain mean.",
    "sum": "You summed over the sequences: it is their mean.",
}


function(
    "matching_loss",
    "FlowRL's matching loss",
    gradients=[0, 1, 3],
    visible=[matching_case(open_draw, 4, 5),
             matching_case(open_draw, 8, 4, 1.5, 3.0, 0.1, 0.6)],
    tests=[
        Test("on-policy, nothing padded", 2,
             [call(*[x if i != 2 else b[1] for i, x in enumerate(b[:5])],
                   torch.ones_like(b[5]), 4.0, 0.2, 0.2)
              for b in [off_policy(hidden_draw, 3, 3)]]),
        Test("off-policy, inside the clip", 2,
             [matching_case(hidden_draw, 3, 4, 0.05)]),
        Test("off-policy, both bounds of the clip", 2,
             [matching_case(hidden_draw, 6, 5, 2.0, 2.0, 0.1, 0.5)]),
        Test("padding", 2, [matching_case(hidden_draw, 5, 6)]),
        Test("gradients", 2, [matching_case(hidden_draw, 4, 4, 0.8, 5.0, 0.3, 0.1)]),
    ],
    slips=[Slip(n, m, slipped(n)) for n, m in MATCHING_MESSAGES.items()],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 5. The clipped loss (10 points)
#
# GRPO, Eq. 1 of the paper: with the token ratio $\rho = \pi/\pi_{\text{old}}$ and one
# advantage $A$ for each sequence,
#
# $$-\min\big(\rho A,\ \mathrm{clip}(\rho, 1-\varepsilon_l, 1+\varepsilon_h) A\big) + \lambda\,
# k_3$$
#
# $$k_3 = e^{d} - d - 1,\quad d = \log \pi_{\text{ref}} - \log \pi$$
#
# averaged over the tokens of each sequence, then over the sequences.

# %% question="clipped_loss"
def clipped_loss(log_probs, old_log_probs, ref_log_probs, advantages, mask,
                 clip_low, clip_high, kl_coef):
    """GRPO's loss: three [B, T], [B], [B, T] bool, numbers -> scalar."""
    ### BEGIN SOLUTION
    ratio = (log_probs - old_log_probs.detach()).exp()
    gain = advantages.detach().unsqueeze(1)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = -torch.minimum(ratio * gain, clipped * gain)
    distance = ref_log_probs.detach() - log_probs
    losses = losses + kl_coef * (distance.exp() - distance - 1)
    per_sequence = losses.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)
    return per_sequence.mean()
    ### END SOLUTION

# %% check="clipped_loss"
assignment.check("clipped_loss", clipped_loss)

# %% hidden="clipped_loss"
### BEGIN HIDDEN TESTS
def clipped_case(draw, rows, length, drift=0.5, low=0.2, high=0.3, kl_coef=0.0):
    _, p, old, ref, _, mask = off_policy(draw, rows, length, drift)
    gains = draw.uniform(rows, low=0.2) * torch.tensor([1.0, -1.0] * rows)[:rows]
    return call(p, old, ref, gains.double(), mask, low, high, kl_coef)


def clipped_slip(slip=""):
    """The clipped loss with one slip in it."""

    def loss(p, old, ref, gains, mask, low, high, kl_coef):
        gain, lengths = gains.detach().unsqueeze(1), mask.sum(1)
        log_ratio = p - old.detach()
        if slip == "sequence ratio":
            log_ratio = log_ratio.masked_fill(~mask, 0.0).sum(1, keepdim=True)
            log_ratio = log_ratio.expand_as(p)
        if slip == "ratio turned round":
            log_ratio = -log_ratio
        ratio = log_ratio.exp()
        top = low if slip == "one clip" else high
        clipped = ratio.clamp(1 - low, 1 + top)
        better = torch.maximum if slip == "maximum" else torch.minimum
        losses = -better(ratio * gain, clipped * gain)
        if slip == "not clipped":
            losses = -ratio * gain
        if slip == "always clipped":
            losses = -clipped * gain
        if slip == "sign":
            losses = -losses
        if slip == "no ratio":
            losses = -p * gain
        d = ref.detach() - p
        if slip == "k3 turned round":
            d = -d
        penalty = d.exp() - d - 1
        if slip == "k1":
            penalty = -d
        if slip == "k2":
            penalty = d.square() / 2
        if slip == "penalty subtracted":
            penalty = -penalty
        if slip == "no penalty":
            penalty = 0 * penalty
        losses = (losses + kl_coef * penalty)
        if slip == "no mask":
            return losses.mean()
        losses = losses.masked_fill(~mask, 0.0)
        if slip == "token mean":
            return losses.sum() / mask.sum()
        if slip == "divided by T":
            return losses.mean()
        if slip == "summed":
            return losses.sum(1).mean()
        return (losses.sum(1) / lengths).mean()

    return loss


CLIPPED_MESSAGES = {
    "not clipped": "The clip has no effect.",
    "always clipped": "The *minimum* of the clipped and the unclipped is missing: a "
    "token that went the wrong way must be pulled back.",
    "maximum": "You took the maximum of the two: it is the minimum, then the minus.",
    "one clip": "The upper bound is 1 + clip_high.",
    "sequence ratio": "The ratio is of single tokens here.",
    "ratio turned round": "The ratio is turned round.",
    "sign": "The sign is turned round: a gain must lower the loss.",
    "no ratio": "There is no ratio in your loss: that is plain REINFORCE.",
    "token mean": "You averaged over all tokens of the batch, so long sequences weigh "
    "more. Average inside each sequence first.",
    "divided by T": "You averaged over padding.",
    "no mask": "The mask has no effect.",
    "summed": "You summed over the tokens: average them.",
    "k1": "That is k1. k3 = exp(d) − d − 1.",
    "k2": "That is k2. k3 = exp(d) − d − 1.",
    "k3 turned round": "d is turned round: d = log π_ref − log π.",
    "penalty subtracted": "The penalty is added to the loss, not subtracted.",
    "no penalty": "kl_coef has no effect.",
}


function(
    "clipped_loss",
    "GRPO's clipped loss",
    gradients=[0],
    visible=[clipped_case(open_draw, 4, 5), clipped_case(open_draw, 4, 3, 1.2, 0.1, 0.4),
             clipped_case(open_draw, 3, 4, kl_coef=0.3)],
    tests=[
        Test("inside the clip", 2, [clipped_case(hidden_draw, 4, 4, 0.05)]),
        Test("outside the clip, both signs", 3,
             [clipped_case(hidden_draw, 6, 5, 1.5, 0.1, 0.5)]),
        Test("padding and lengths", 2, [clipped_case(hidden_draw, 5, 6)]),
        Test("the KL penalty", 3, [clipped_case(hidden_draw, 4, 4, kl_coef=0.5)]),
    ],
    slips=[Slip(n, m, clipped_slip(n)) for n, m in CLIPPED_MESSAGES.items()],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 6. A test of your own (10 points)
#
# Write `test_matching_loss(loss)`: it gets a function with the arguments of question 4 and
# raises an `AssertionError` when it is wrong. It must accept **every** right implementation,
# however it is written, and reject each of ten wrong ones, a point each. The wrong ones have
# slips that people make: think of each factor of the formula, of padding, of both bounds of the
# clip, and of each gradient. Comparing with your own `matching_loss` is allowed, and a good
# start; on which batch, is the question.

# %% question="test_matching_loss"
def test_matching_loss(loss):
    """Raise AssertionError if `loss` is not FlowRL's matching loss."""
    ### BEGIN SOLUTION
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    mask = torch.arange(5) < torch.tensor([1, 5, 3, 2, 4, 5]).unsqueeze(1)
    log_probs = -0.5 - draw(6, 5)
    tensors = [draw(6), log_probs, log_probs + 1.6 * draw(6, 5) - 0.8,
               -0.5 - draw(6, 5), draw(6) - 0.5]
    found = []
    for function in (loss, matching_loss):
        given = [tensor.clone().requires_grad_() for tensor in tensors]
        value = function(*given, mask, 3.0, 0.1, 0.4)
        slopes = torch.autograd.grad(value, given, allow_unused=True)
        zeros = [torch.zeros_like(x) for x in given]
        found.append([value.detach()] + [
            z if s is None else s for s, z in zip(slopes, zeros)
        ])
    for ours, theirs in zip(*found):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs)
    ### END SOLUTION

# %% check="test_matching_loss"
assignment.check("test_matching_loss", test_matching_loss)

# %% hidden="test_matching_loss"
### BEGIN HIDDEN TESTS
HEAD = """import torch
def implementation(log_z, log_probs, old_log_probs, ref_log_probs, rewards, mask,
                   reward_scale, clip_low, clip_high):
    lengths = mask.sum(1)
    moved = (log_probs - old_log_probs).masked_fill(~mask, 0.0).sum(1)
    ratio = moved.exp().detach()
    weights = ratio.clamp(1 - clip_low, 1 + clip_high)
    gained = (log_probs - ref_log_probs.detach()).masked_fill(~mask, 0.0).sum(1)
    residuals = log_z + gained / lengths - reward_scale * rewards.detach()
    return (weights * residuals ** 2).mean()
"""
OTHER = """import torch
def implementation(log_z, log_probs, old_log_probs, ref_log_probs, rewards, mask,
                   reward_scale, clip_low, clip_high):
    share = mask / mask.sum(1, keepdim=True)
    fixed = ref_log_probs.detach()
    deficit = torch.where(mask, fixed - log_probs, torch.zeros_like(fixed))
    deficit = reward_scale * rewards.detach() + (share * deficit).sum(1) - log_z
    with torch.no_grad():
        moved = torch.where(mask, log_probs - old_log_probs, torch.zeros_like(fixed))
        weights = torch.clamp(torch.exp(moved.sum(1)), min=1 - clip_low,
                              max=1 + clip_high)
    return torch.dot(weights, deficit * deficit) / len(rewards)
"""


def mutate(source, old, new):
    assert source.count(old) == 1, old
    return source.replace(old, new)


own_test(
    "test_matching_loss",
    "A test of the matching loss",
    harmless="flowrl_lab.assignments.known:matching_loss",
    right=[HEAD, OTHER],
    mutants=[
        ("the clip is computed and not applied", 1,
         mutate(HEAD, "(weights * residuals", "(ratio * residuals")),
        ("the weight carries a gradient", 1,
         mutate(HEAD, "moved.exp().detach()", "moved.exp()")),
        ("the lower bound of the clip is missing", 1,
         mutate(HEAD, "ratio.clamp(1 - clip_low, 1 + clip_high)",
                "ratio.clamp(max=1 + clip_high)")),
        ("the upper bound uses the wrong ε", 1,
         mutate(HEAD, "1 + clip_high)", "1 + clip_low)")),
        ("the ratio is of single tokens", 1,
         mutate(HEAD, "ratio = moved.exp()", "ratio = (moved / lengths).exp()")),
        ("the padding is averaged in", 1,
         mutate(HEAD, "gained / lengths", "gained / mask.shape[1]")),
        ("the reward is divided by the length", 1,
         mutate(HEAD, "reward_scale * rewards.detach()",
                "reward_scale * rewards.detach() / lengths")),
        ("the reference gets a gradient", 1,
         mutate(HEAD, "ref_log_probs.detach()", "ref_log_probs")),
        ("log Z gets no gradient", 1,
         mutate(HEAD, "log_z + gained", "log_z.detach() + gained")),
        ("each log Z meets each sequence", 1,
         mutate(HEAD, "log_z + gained", "log_z.unsqueeze(-1) + gained")),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 7. A second one (8 points)
#
# The same for `clipped_loss`: `test_clipped_loss(loss)`, eight wrong ones.

# %% question="test_clipped_loss"
def test_clipped_loss(loss):
    """Raise AssertionError if `loss` is not GRPO's clipped loss."""
    ### BEGIN SOLUTION
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    mask = torch.arange(5) < torch.tensor([1, 5, 3, 2, 4, 5]).unsqueeze(1)
    log_probs = -0.5 - draw(6, 5)
    signs = torch.tensor([1, -1, 1, -1, 1, -1])
    given = [log_probs + 1.6 * draw(6, 5) - 0.8, -0.5 - draw(6, 5),
             (0.5 + draw(6)) * signs, mask, 0.1, 0.4]
    for kl_coef in (0.0, 0.7):
        found = []
        for function in (loss, clipped_loss):
            leaf = log_probs.clone().requires_grad_()
            value = function(leaf, *given, kl_coef)
            (slope,) = torch.autograd.grad(value, leaf)
            found.append((value.detach(), slope))
        for ours, theirs in zip(*found):
            assert ours.shape == theirs.shape
            assert torch.allclose(ours, theirs)
    ### END SOLUTION

# %% check="test_clipped_loss"
assignment.check("test_clipped_loss", test_clipped_loss)

# %% hidden="test_clipped_loss"
### BEGIN HIDDEN TESTS
CLIPPED = """import torch
def implementation(log_probs, old_log_probs, ref_log_probs, advantages, mask,
                   clip_low, clip_high, kl_coef):
    ratio = (log_probs - old_log_probs).exp()
    gain = advantages.unsqueeze(1)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = -torch.minimum(ratio * gain, clipped * gain)
    d = ref_log_probs - log_probs
    losses = losses + kl_coef * (d.exp() - d - 1)
    losses = losses.masked_fill(~mask, 0.0)
    return (losses.sum(1) / mask.sum(1)).mean()
"""
CLIPPED_OTHER = """import torch
def implementation(log_probs, old_log_probs, ref_log_probs, advantages, mask,
                   clip_low, clip_high, kl_coef):
    total = 0.0
    for row in range(len(mask)):
        kept = mask[row]
        now, old, ref = (x[row][kept] for x in (log_probs, old_log_probs,
                                                ref_log_probs))
        ratio, gain = torch.exp(now - old), advantages[row]
        bound = ratio.clamp(max=1 + clip_high) if gain > 0 else ratio.clamp(
            min=1 - clip_low)
        penalty = torch.expm1(ref - now) - (ref - now)
        total = total + (kl_coef * penalty - bound * gain).mean()
    return total / len(mask)
"""


own_test(
    "test_clipped_loss",
    "A test of the clipped loss",
    harmless="flowrl_lab.assignments.known:clipped_loss",
    right=[CLIPPED, CLIPPED_OTHER],
    mutants=[
        ("nothing is clipped", 1,
         mutate(CLIPPED, "-torch.minimum(ratio * gain, clipped * gain)", "-ratio * gain")),
        ("the clipped ratio alone, without the minimum", 1,
         mutate(CLIPPED, "-torch.minimum(ratio * gain, clipped * gain)",
                "-clipped * gain")),
        ("the maximum instead of the minimum", 1,
         mutate(CLIPPED, "torch.minimum", "torch.maximum")),
        ("the upper bound uses the wrong ε", 1,
         mutate(CLIPPED, "1 + clip_high", "1 + clip_low")),
        ("all tokens of the batch weigh the same", 1,
         mutate(CLIPPED, "(losses.sum(1) / mask.sum(1)).mean()",
                "losses.sum() / mask.sum()")),
        ("the padding is averaged in", 1,
         mutate(CLIPPED, "losses.sum(1) / mask.sum(1)", "losses.mean(1)")),
        ("k1 instead of k3", 1, mutate(CLIPPED, "(d.exp() - d - 1)", "(-d)")),
        ("the penalty looks the other way", 1,
         mutate(CLIPPED, "d = ref_log_probs - log_probs",
                "d = log_probs - ref_log_probs")),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 8. The zoo (4 points)
#
# Six losses that claim to be `matching_loss`. Read them, run your test on them, and write down
# the *names* of the broken ones.

# %%
zoo = assignment.functions("zoo")
for name, source in assignment.problem["zoo"].items():
    print(source)

# %% [markdown]
# Run your test on each, and look at what it says.

# %%
for name, loss in zoo.items():
    with assignment.attempt():
        try:
            test_matching_loss(loss)
            print(f"{name}: accepted")
        except AssertionError as error:
            print(f"{name}: rejected {error}")

# %% [markdown]
# The names of the broken ones, as a set of texts.

# %% question="BROKEN"
BROKEN = None  # your set of names here

# %% check="BROKEN"
assignment.check("BROKEN", BROKEN)

# %% hidden="zoo"
### BEGIN HIDDEN TESTS
ANIMALS = ["ant", "bee", "cat", "dog", "elk", "fly"]
SHAPES = [
    (False, HEAD),
    (False, OTHER),
    (True, mutate(HEAD, "gained / lengths", "gained")),
    (True, mutate(HEAD, "clamp(1 - clip_low, 1 + clip_high)",
                  "clamp(clip_low, 1 + clip_high)")),
    (True, mutate(OTHER, "reward_scale * rewards.detach() +",
                  "reward_scale * (rewards - rewards.mean()).detach() +")),
    (True, mutate(OTHER, "log_probs - old_log_probs", "log_probs - ref_log_probs")),
]
order = sorted(range(6), key=lambda _: variant_draw.uniform(1).item())
zoo_texts = {
    name: SHAPES[place][1].replace("implementation", name)
    for name, place in zip(ANIMALS, order)
}
problem["zoo"] = zoo_texts
number("BROKEN", "The broken losses of the zoo", points=4,
       value={name for name, place in zip(ANIMALS, order) if SHAPES[place][0]})
### END HIDDEN TESTS

# %% [markdown]
# ## 9. An argued answer (6 points)
#
# One of your mutants escaped a colleague's test, which compares *values* on twenty random
# batches. In at most 150 words: which kinds of mistakes can no comparison of values find, and
# which ones does a test on on-policy batches miss whatever it compares? Name for each an example
# from this assignment, and say what the mistake would do to a training run.

# %% [markdown] argued="argument"
# ### BEGIN SOLUTION
# Values cannot show a wrong gradient: a weight that is not detached, a reference with a
# gradient, a log Z that is cut off all have the right value. The first optimises the weight
# itself (it lowers the probability of samples with large residuals), the second does nothing
# as long as the reference is frozen, and moves it where it shares weights, the third never
# learns log Z, so the noise stays high. On-policy all ratios are 1, so everything about the
# weight is invisible there: a missing clip, a token ratio, a ratio turned round, the wrong ε.
# In a run with several updates a batch such a loss weighs stale samples wrongly, up to
# exploding steps.
# ### END SOLUTION

# %% hidden="argument"
### BEGIN HIDDEN TESTS
argued(
    "argument",
    "What a test of values cannot find",
    points=6,
    rubric=[
        "2: wrong gradients at the right value, with an example of the assignment",
        "2: on-policy hides everything about the importance weight, with an example",
        "2: for each, what it would do to a run",
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## Hand in
#
# Save the notebook (Ctrl+S), then run this cell: it writes one file to hand in.

# %%
assignment.submit(student=assignment.student or "your name")
