# The one source of assignment 3.  `python -m flowrl_lab assign build` makes from it the
# student notebook, the solved one and the grading bundle; see INSTRUCTORS.md.

# %% [markdown]
# # Assignment 3: Accuracy and diversity of a tiny language model
#
# **You will** choose β, the form of the loss and the features of log Z under a fixed sampling
# budget, to get a tiny language model onto the best front of accuracy and diversity; and defend
# the choice with seeds and spread.
#
# **You need** [notebook 7](../../07_tiny_lm_maths.ipynb) and
# [notebook 6](../../06_flowrl_loss.ipynb). **It takes** 3 to 4 hours, most of them thinking: a
# run takes 10 to 60 seconds on a CPU, and a GPU is not needed.
#
# **How it is marked.** 19 points come from hidden tests of your functions and your number, 20
# from your six trained adapters, which the instructor's referee measures anew, and 12 from your
# argued answer. Write the functions with `torch` only: flowrl_lab is not there when they are
# marked.
#
# This is variant {{variant}}.

# %%
import flowrl_lab
from flowrl_lab.assignments import open_assignment

session = flowrl_lab.setup(seed=0)
assignment = open_assignment("3_tiny_lm.json")
assignment.questions()

# %% [markdown]
# ## The task
#
# No lesson has used it. As in notebook 7 a prompt such as `24!37:` asks for an expression that
# makes 24 without two digits. But the answer must also **use a minus**, and all your prompts ban
# one common digit. The pretrained model knows nothing of the minus: it is right about one time in
# seven.

# %%
import json

import torch

from flowrl_lab import Run, load_task, preset

options = assignment.problem["task_options"]
task = load_task("required_operator", **options)
prompt = task.prompts("heldout")[0]
print(options, "-", len(task.prompts("heldout")), "held-out prompts")
print(prompt, *task.answers(prompt).labels[:8])

# %% hidden="problem"
### BEGIN HIDDEN TESTS
from pathlib import Path

problem["task_options"] = {"operator": "-", "digit": variant_draw.pick(1, 3, 7, 9)}
problem["budget"] = 10_240
### END HIDDEN TESTS

# %% [markdown]
# ## 1. Effective answers (4 points)
#
# How many right answers does a policy really use? The exponential of the entropy of its
# distribution *among the right answers*. The log-probabilities of the right answers that you get
# do not sum to 1: normalise them first. An answer may have log-probability $-\infty$.

# %% question="effective_answers"
def effective_answers(log_probs):
    """exp(entropy) among the listed answers, last axis: [..., N] -> [...]."""
    ### BEGIN SOLUTION
    inside = log_probs.log_softmax(-1)
    never = torch.isneginf(inside)
    entropy = -(inside.exp() * inside.masked_fill(never, 0.0)).sum(-1)
    return entropy.exp()
    ### END SOLUTION

# %% check="effective_answers"
assignment.check("effective_answers", effective_answers)

# %% hidden="effective_answers"
### BEGIN HIDDEN TESTS
def listed(draw, *shape):
    """Some of a policy's answers: what is listed has part of the mass only."""
    return draw.log_probs(*shape) - 0.3 - draw.uniform(1)


def with_never(draw):
    values = listed(draw, 6)
    values[draw.whole(1, below=6)] = -math.inf
    return call(values)


def entropy_of(inside):
    return -(inside.exp() * inside.masked_fill(torch.isneginf(inside), 0.0)).sum(-1)


function(
    "effective_answers",
    "Effective answers",
    visible=[call(listed(open_draw, 5)), call(listed(open_draw, 2, 4)),
             with_never(open_draw)],
    tests=[
        Test("one prompt", 2, [call(listed(hidden_draw, 7)),
                               call(torch.full((8,), -5.0, dtype=torch.float64))]),
        Test("several prompts at once", 1, [call(listed(hidden_draw, 3, 5))]),
        Test("answers that the policy never gives", 1, [with_never(hidden_draw)]),
    ],
    slips=[
        Slip("not normalised", "Normalise among the right answers first (log_softmax).",
             lambda x: entropy_of(x).exp()),
        Slip("the entropy", "That is the entropy, in nats: take its exponential.",
             lambda x: entropy_of(x.log_softmax(-1))),
        Slip("0 · ∞", "0 · ∞ is NaN: an answer that is never given adds nothing.",
             lambda x: (-(x.log_softmax(-1).exp() * x.log_softmax(-1)).sum(-1)).exp()),
        Slip("sign", "The sign is turned round: entropy is −Σ p log p.",
             lambda x: (-entropy_of(x.log_softmax(-1))).exp()),
        Slip("bits", "exp goes with the natural logarithm.",
             lambda x: 2 ** entropy_of(x.log_softmax(-1))),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 2. Distinct answers in k samples (4 points)
#
# The expected number of *different* right answers among k samples: answer $y$ occurs at least
# once with probability $1 - (1 - \pi(y))^k$. Here nothing is normalised: samples may be wrong.

# %% question="expected_distinct"
def expected_distinct(log_probs, num_samples):
    """Expected number of different answers, last axis: [..., N], k -> [...]."""
    ### BEGIN SOLUTION
    return (1 - (1 - log_probs.exp()) ** num_samples).sum(-1)
    ### END SOLUTION

# %% check="expected_distinct"
assignment.check("expected_distinct", expected_distinct)

# %% hidden="expected_distinct"
### BEGIN HIDDEN TESTS
function(
    "expected_distinct",
    "Distinct answers in k samples",
    visible=[call(listed(open_draw, 5), 8), call(listed(open_draw, 2, 4), 64)],
    tests=[
        Test("one prompt", 2, [call(listed(hidden_draw, 6), 16),
                               call(listed(hidden_draw, 6), 1)]),
        Test("several prompts at once", 1, [call(listed(hidden_draw, 3, 5), 64)]),
        Test("answers that the policy never gives", 1,
             [call(with_never(hidden_draw).args[0], 8)]),
    ],
    slips=[
        Slip("normalised", "Do not normalise: the samples come from the whole policy, "
             "wrong answers included.",
             lambda x, k: (1 - (1 - x.softmax(-1)) ** k).sum(-1)),
        Slip("k p", "k·π(y) counts repeats.", lambda x, k: (k * x.exp()).sum(-1)),
        Slip("pass@k", "That is the chance of any right answer, pass@k.",
             lambda x, k: 1 - (1 - x.exp().sum(-1)) ** k),
        Slip("a mean", "You averaged over the answers: add up.",
             lambda x, k: (1 - (1 - x.exp()) ** k).mean(-1)),
        Slip("no sample", "That is the expected number that is *missing*.",
             lambda x, k: ((1 - x.exp()) ** k).sum(-1)),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 3. The front (5 points)
#
# A run is on the front when no other run is at least as good in both numbers and better in one.
# Two runs that are equal in both are both on it, or both not.

# %% question="on_front"
def on_front(accuracy, diversity):
    """True for each run that no other dominates: [R], [R] -> [R] bool."""
    ### BEGIN SOLUTION
    better = (accuracy >= accuracy[:, None]) & (diversity >= diversity[:, None])
    strictly = (accuracy > accuracy[:, None]) | (diversity > diversity[:, None])
    return ~(better & strictly).any(1)
    ### END SOLUTION

# %% check="on_front"
assignment.check("on_front", on_front)

# %% hidden="on_front"
### BEGIN HIDDEN TESTS
def runs_of(draw, count):
    """Runs near a line from accurate to diverse, so that some are on the front."""
    accuracy = draw.uniform(count)
    return call(accuracy, 8 - 6 * accuracy + draw.uniform(count, low=-1))


def ties(draw):
    """Runs that equal each other in one number, and in both; shuffled."""
    a = torch.tensor([0.5, 0.5, 0.7, 0.7, 0.9, 0.9, 0.3], dtype=torch.float64)
    d = torch.tensor([5.0, 4.0, 4.0, 4.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    order = draw.uniform(7).argsort()
    return call(a[order] * (0.8 + 0.2 * draw.uniform(1)), d[order])


def beaten(a, d, weakly):
    better = (a >= a[:, None]) & (d >= d[:, None])
    if weakly:
        return ~(better & ~torch.eye(len(a), dtype=torch.bool)).any(1)
    return ~((a > a[:, None]) & (d > d[:, None])).any(1)


function(
    "on_front",
    "The front",
    visible=[runs_of(open_draw, 6), ties(open_draw)],
    tests=[
        Test("runs without ties", 2, [runs_of(hidden_draw, 9), runs_of(hidden_draw, 12)]),
        Test("ties in one number and in both", 2, [ties(hidden_draw)]),
        Test("a single run", 1, [runs_of(hidden_draw, 1)]),
    ],
    slips=[
        Slip("strictly in both", "A run is dominated as well when another one equals it in "
             "one number and beats it in the other.", lambda a, d: beaten(a, d, False)),
        Slip("equal runs beat each other", "Two runs that are equal in both do not dominate "
             "each other.", lambda a, d: beaten(a, d, True)),
        Slip("turned round", "You marked the runs that are dominated.",
             lambda a, d: (((a >= a[:, None]) & (d >= d[:, None]))
                           & ((a > a[:, None]) | (d > d[:, None]))).any(1)),
        Slip("the best of each", "The best in each number are on the front, and others "
             "between them are too.", lambda a, d: (a == a.max()) | (d == d.max())),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Is a difference more than chance? (4 points)
#
# Welch's t of two sets of seeds: the difference of the means, divided by
# $\sqrt{s_1^2/n_1 + s_2^2/n_2}$ ($s$: standard deviation with $n - 1$).

# %% question="welch_t"
def welch_t(first, second):
    """Welch's t: [n1], [n2] -> scalar; positive if the first mean is larger."""
    ### BEGIN SOLUTION
    error = first.var() / len(first) + second.var() / len(second)
    return (first.mean() - second.mean()) / error.sqrt()
    ### END SOLUTION

# %% check="welch_t"
assignment.check("welch_t", welch_t)

# %% hidden="welch_t"
### BEGIN HIDDEN TESTS
def two_sets(draw, n1, n2):
    return call(draw.uniform(n1), draw.uniform(n2))


function(
    "welch_t",
    "Welch's t",
    visible=[two_sets(open_draw, 3, 3), two_sets(open_draw, 5, 3)],
    tests=[
        Test("as many seeds", 2, [two_sets(hidden_draw, 4, 4)]),
        Test("different numbers of seeds", 2, [two_sets(hidden_draw, 3, 6),
                                               two_sets(hidden_draw, 7, 2)]),
    ],
    slips=[
        Slip("std with n", "The variance divides by n − 1 (torch's default).",
             lambda a, b: (a.mean() - b.mean()) / (
                 a.var(correction=0) / len(a) + b.var(correction=0) / len(b)).sqrt()),
        Slip("not divided by n", "Divide each variance by its number of seeds: it is the "
             "spread of the *mean* that counts.",
             lambda a, b: (a.mean() - b.mean()) / (a.var() + b.var()).sqrt()),
        Slip("no root", "Take the square root of the sum.",
             lambda a, b: (a.mean() - b.mean()) / (a.var() / len(a) + b.var() / len(b))),
        Slip("turned round", "Positive when the *first* mean is larger.",
             lambda a, b: (b.mean() - a.mean()) / (
                 a.var() / len(a) + b.var() / len(b)).sqrt()),
        Slip("pooled", "That pools the two variances: Welch keeps them apart.",
             lambda a, b: (a.mean() - b.mean()) / (
                 ((len(a) - 1) * a.var() + (len(b) - 1) * b.var())
                 / (len(a) + len(b) - 2) * (1 / len(a) + 1 / len(b))).sqrt()),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 5. Where you start (2 points)
#
# The exact accuracy of the pretrained model on *your* held-out prompts (all of them, at most
# 32), three digits after the point. `run.referee.report()` gives the exact figures of a run at
# any time: also of `Run(start_config())`, which has not taken a step.

# %%
def start_config(**settings):
    config = preset("make_number", "flowrl").replace(
        task="required_operator", task_options=options, lora_rank=8,
        steps=80, prompts_per_step=16, num_generations=8,
        eval_every=40, eval_prompts=32,
    )
    return config.replace(**settings)

# %% question="START_ACCURACY"
START_ACCURACY = None  # your number here

# %% check="START_ACCURACY"
assignment.check("START_ACCURACY", START_ACCURACY)

# %% hidden="start"
### BEGIN HIDDEN TESTS
RANK, ALPHA, PROMPTS = 8, 32.0, 32


def start_accuracy():
    from flowrl_lab.assignments.marking.referee import judge_start

    task = load_required(problem["task_options"])
    return judge_start(task, rank=RANK, alpha=ALPHA, num_prompts=PROMPTS)["accuracy"]


def load_required(options):
    from flowrl_lab.tasks import load_task

    return load_task("required_operator", **options)


number("START_ACCURACY", "The accuracy at the start", points=2, value=start_accuracy(),
       tolerance=0.0011)
### END HIDDEN TESTS

# %% [markdown]
# ## 6. Your choice (20 points)
#
# **Budget:** 10,240 sampled completions a run (`steps` × `prompts_per_step` ×
# `num_generations`), rank 8, any algorithm and any other setting. Hand in two entries with
# seeds 0, 1 and 2 each:
#
# - `accurate`: as accurate as possible, without collapsing: mean accuracy at least 0.75 (2
#   points), at least 0.80 (2 more), with at least 2 effective answers (2);
# - `diverse`: at least 5.5 effective answers (2), at least 6 (2 more), with an accuracy of at
#   least 0.6 (2).
#
# 2 points for adapters that fit and runs within the budget, 2 for losing no prompt (pass@64 at
# least 0.99 in both entries), 4 when the numbers that you claim are those that the referee finds.
# The levers: `reward_scale`, `reward_form` and `length_normalize` (the form of the loss),
# `log_z_features`, learning rates, more steps with fewer samples or the other way round. Try
# them with one seed; decide with three.

# %% question="adapters"
ACCURATE, DIVERSE = {}, {}  # your settings, for start_config(**ACCURATE)
### BEGIN SOLUTION
ACCURATE = {"reward_scale": 10.0}
DIVERSE = {"reward_scale": 4.0}
### END SOLUTION

# %% [markdown]
# The next cells train your two entries (about a minute each), save the adapters, and write your
# claims. Adapters that are there already are not trained again: delete a file to train it anew.

# %%
from safetensors.torch import save_file


def train_entry(name, settings):
    rows = []
    for seed in range(3):
        run = Run(start_config(**settings, seed=seed, name=f"{name}_{seed}"))
        path = assignment.folder / f"{name}_{seed}.safetensors"
        if path.exists():
            run.policy.load_state_dict(load_adapter(path))
        else:
            for record in run:
                pass
            state = run.policy.state_dict()
            save_file({k: v.half() for k, v in state.items()}, path)
        rows.append(run.referee.report())
    return rows

# %%
from safetensors.torch import load_file


def load_adapter(path):
    return {name: value.float() for name, value in load_file(path).items()}


def claim(settings, rows):
    config = start_config(**settings)
    return {"steps": config.steps, "prompts_per_step": config.prompts_per_step,
            "num_generations": config.num_generations, "settings": settings,
            "accuracy": [row.accuracy for row in rows],
            "effective": [row.effective_answers for row in rows]}

# %%
if ACCURATE and DIVERSE:
    claims = {}
    for name, settings in {"accurate": ACCURATE, "diverse": DIVERSE}.items():
        claims[name] = claim(settings, train_entry(name, settings))
        print(name, *[f"{a:.3f}/{e:.2f}" for a, e in zip(
            claims[name]["accuracy"], claims[name]["effective"])])
    text = json.dumps(claims, indent=1)
    (assignment.folder / "runs.json").write_text(text)

# %% check="adapters"
assignment.check_files("adapters")

# %% hidden="adapters"
### BEGIN HIDDEN TESTS
ENTRIES = ("accurate", "diverse")
ADAPTERS = [f"{entry}_{seed}.safetensors" for entry in ENTRIES for seed in range(3)]


def within_budget(claims):
    sizes = [[float(claims[e][k]) for k in ("steps", "prompts_per_step",
                                            "num_generations")] for e in ENTRIES]
    return all(min(size) >= 1 and math.prod(size) <= problem["budget"] for size in sizes)


def honest(claims, found):
    """Claimed means are those that the referee finds, to rounding."""
    for entry in ENTRIES:
        for key, most in (("accuracy", 0.01), ("effective", 0.1)):
            claimed = [float(x) for x in claims[entry][key]]
            measured = [row[key] for row in found[entry]]
            near = [abs(a - b) <= most for a, b in zip(claimed, measured)]
            if len(claimed) != 3 or not all(near):  # NaN is near to nothing
                return False
    return True


def judge_adapters(files):
    from flowrl_lab.assignments.marking.referee import judge_adapter, read_json

    task = load_required(problem["task_options"])
    found = {
        entry: [judge_adapter(files[f"{entry}_{seed}.safetensors"], task, rank=RANK,
                              alpha=ALPHA, num_prompts=PROMPTS) for seed in range(3)]
        for entry in ENTRIES
    }
    try:
        claims = read_json(files["runs.json"])
        budget, claimed = within_budget(claims), honest(claims, found)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        budget = claimed = False
    means = {e: {k: sum(row[k] for row in found[e]) / 3 for k in found[e][0]}
             for e in ENTRIES}
    a, d = means["accurate"], means["diverse"]
    told = {e: f"measured: accuracy {m['accuracy']:.3f}, {m['effective']:.2f} effective "
               f"answers, pass@64 {m['pass64']:.3f}" for e, m in means.items()}
    both = f"accurate {told['accurate']}; diverse {told['diverse']}"
    passes = [
        (budget, "runs.json is not as the notebook writes it, or above the budget"),
        (a["accuracy"] >= 0.75, told["accurate"]),
        (a["accuracy"] >= 0.80, told["accurate"]),
        (a["accuracy"] >= 0.60 and a["effective"] >= 2, told["accurate"]),
        (d["accuracy"] >= 0.40 and d["effective"] >= 5.5, told["diverse"]),
        (d["accuracy"] >= 0.40 and d["effective"] >= 6.0, told["diverse"]),
        (d["accuracy"] >= 0.60, told["diverse"]),
        (min(a["pass64"], d["pass64"]) >= 0.99 and a["accuracy"] >= 0.5, both),
        (claimed, f"not what you claim; {both}"),
    ]
    return [(float(passed), note) for passed, note in passes]


recorded(
    "adapters",
    "Two entries on the front",
    files=[*ADAPTERS, "runs.json"],
    judge=judge_adapters,
    parts=[
        ("the adapters fit, the budget is kept", 2),
        ("accurate: accuracy at least 0.75", 2),
        ("accurate: accuracy at least 0.80", 2),
        ("accurate: at least 2 effective answers", 2),
        ("diverse: at least 5.5 effective answers", 2),
        ("diverse: at least 6 effective answers", 2),
        ("diverse: accuracy at least 0.60", 2),
        ("no prompt is lost", 2),
        ("the claimed numbers are the measured ones", 4),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 7. Defend it (12 points)
#
# In at most 300 words: how did you choose, out of how many runs, and what did each lever do?
# Which of your differences are more than chance (Welch's t with your seeds), which are not? Would
# KL-regularised REINFORCE at the matched temperature have done as well, and how would you show
# it within the same budget? Where does your choice lose?

# %% [markdown] argued="defence"
# ### BEGIN SOLUTION
# I tried eight settings with seed 0 and kept two: β = 10 in the textbook form (raw reward, token
# sums) as the accurate entry, β = 4 as the diverse one. β moves along the front: a larger one
# buys accuracy and costs answers. Z-scored rewards with token means collapse to about one answer
# on this model, as GRPO does, whatever β is in its usual range. The features of log Z changed
# less than the spread between seeds. With three seeds the difference in effective answers
# between the entries is many standard errors (Welch's t above 10); that of accuracy too. A
# KL-regularised REINFORCE with kl_coef = 1/β aims at the same target, and theory says the same
# optimum; I would run it with three seeds at 1/10 and 1/4 and expect no difference above chance.
# My choice loses to GRPO in accuracy alone.
# ### END SOLUTION

# %% hidden="defence"
### BEGIN HIDDEN TESTS
argued(
    "defence",
    "The defence of the choice",
    points=12,
    rubric=[
        "3: how it was chosen, out of how many runs; one seed to search, three to decide",
        "3: what β, the form and the features did, with numbers of the own runs",
        "3: which differences are more than chance, with Welch's t; which are not",
        "3: KL-regularised REINFORCE as the fair control; where the choice loses",
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## Hand in
#
# Save the notebook (Ctrl+S), then run this cell: it writes one file with your notebook, your
# adapters and your claims.

# %%
assignment.submit(student=assignment.student or "your name")
