"""Every public function of the core refuses bad input with got, expected, fix.

One table: a good call of each function, and for each of its arguments the bad
values it must refuse.  The shape checks of the other tests are off here, so that
what a user would read is what is tested.
"""

import inspect
import math
from types import SimpleNamespace

import pytest
import torch

from flowrl_lab import advantages, exact, losses, metrics, partition, tokens
from flowrl_lab._validation import bad_input

pytestmark = pytest.mark.bad_input

NAN, INF = math.nan, math.inf
B, T, V, H, N, G = 4, 3, 5, 6, 3, 2


def rand(*shape):
    return -torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def poisoned(good, value):
    """``good`` with one element replaced."""
    bad = good.clone()
    bad.view(-1)[0] = value
    return bad


MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
EMPTY_ROW = MASK & (torch.arange(B) != 1).unsqueeze(1)
TOKENS, ROWS = rand(B, T), rand(B)
IDS = torch.ones(B, T, dtype=torch.long)
LOG_P = torch.full((N,), -math.log(N))
LOGITS = rand(B, T, V)
ANSWERS = SimpleNamespace(
    rewards=torch.tensor([1.0, 0.0, 1.0]),
    correct=torch.tensor([True, False, True]),
    groups=torch.tensor([0, -1, 1]),
    exhaustive=True,
)


def answers(**changes):
    return SimpleNamespace(**(vars(ANSWERS) | changes))


# What is wrong for each kind of argument.
WRONG_TYPE = [[1.0, 2.0], None, "text"]
BAD_TOKENS = [
    *WRONG_TYPE,
    TOKENS[:, :2],
    TOKENS[:3],
    TOKENS.flatten(),
    TOKENS.unsqueeze(-1),
    TOKENS.long(),
    poisoned(TOKENS, NAN),
    poisoned(TOKENS, INF),
]
BAD_ROWS = [
    *WRONG_TYPE,
    ROWS[:3],
    ROWS.unsqueeze(-1),
    ROWS.sum(),
    ROWS.long(),
    poisoned(ROWS, NAN),
    poisoned(ROWS, -INF),
]
BAD_MASK = [
    *WRONG_TYPE,
    MASK.float(),
    MASK.long(),
    MASK[:3],
    MASK[:, :2],
    MASK[:, :0],
    MASK[:0],
    EMPTY_ROW,
]
BAD_GROUPS = [0, -2, 3, 2.0, True, "2"]
BAD_NUMBER = [-0.1, NAN, INF, "1", None, True]
POSITIVE = [*BAD_NUMBER, 0.0]
BAD_COUNT = [0, -1, 2.5, "2", None]
BAD_CHOICE = ["Mean", "sum", "", None]
BAD_LOGITS = [
    *WRONG_TYPE,
    LOGITS[0],
    LOGITS.long(),
    LOGITS[:0],
    poisoned(LOGITS, NAN),
    poisoned(LOGITS, INF),
]
BAD_IDS = [
    *WRONG_TYPE,
    IDS.float(),
    IDS.bool(),
    IDS[:, :2],
    poisoned(IDS, V),
    poisoned(IDS, -100),
]
BAD_LOG_PROBS = [
    *WRONG_TYPE,
    torch.zeros(()),
    LOG_P.exp(),
    LOG_P + 0.1,
    torch.zeros(N, dtype=torch.long),
    poisoned(LOG_P, NAN),
]
INCOMPLETE = [LOG_P - 0.1, torch.full((N,), -INF)]
BAD_ANSWER_REWARDS = [
    *WRONG_TYPE,
    LOG_P[:2],
    torch.ones(N, dtype=torch.long),
    poisoned(LOG_P, NAN),
    poisoned(LOG_P, INF),
]

BATCH = {"log_probs": TOKENS, "old_log_probs": TOKENS, "completion_mask": MASK}
BATCH_BAD = {
    "log_probs": BAD_TOKENS,
    "old_log_probs": BAD_TOKENS,
    "completion_mask": BAD_MASK,
}
CLIPS_BAD = {"clip_low": BAD_NUMBER, "clip_high": BAD_NUMBER}
SURROGATE = BATCH | {"advantages": ROWS}
SURROGATE_BAD = BATCH_BAD | CLIPS_BAD | {"reduction": BAD_CHOICE}
BAD_ADVANTAGES = [bad for bad in BAD_TOKENS + BAD_ROWS if bad is not None]
BAD_PER_TOKEN = [[0.1], TOKENS[:2], TOKENS.long(), poisoned(TOKENS, NAN)]
SEQUENCES = {
    "sequence_log_probs": ROWS,
    "ref_sequence_log_probs": ROWS,
    "rewards": ROWS,
    "reward_scale": 1.0,
}
SEQUENCES_BAD = {
    "sequence_log_probs": BAD_ROWS,
    "ref_sequence_log_probs": BAD_ROWS,
    "rewards": BAD_ROWS,
    "reward_scale": BAD_NUMBER,
}
GROUPED = SEQUENCES | {"num_generations": G}
GROUPED_BAD = SEQUENCES_BAD | {"num_generations": BAD_GROUPS}
FLOWRL = {
    "log_z": ROWS,
    "log_probs": TOKENS,
    "ref_log_probs": TOKENS,
    "rewards": ROWS,
    "completion_mask": MASK,
}
FLOWRL_BAD = {
    "log_z": BAD_ROWS,
    "log_probs": BAD_TOKENS,
    "ref_log_probs": BAD_TOKENS,
    "rewards": BAD_ROWS,
    "completion_mask": BAD_MASK,
    "reward_scale": BAD_NUMBER,
}
FLOWS = {k: v for k, v in FLOWRL.items() if k != "log_z"} | {
    "log_flows": rand(B, T + 1),
    "reward_scale": 1.0,
}
GAPS = [MASK.flip(1), MASK & (torch.arange(T) != 1)]
FLOWS_BAD = {k: v for k, v in FLOWRL_BAD.items() if k != "log_z"} | {
    "log_flows": [*WRONG_TYPE, TOKENS, poisoned(FLOWS["log_flows"], NAN)],
    # None stands for a mask that keeps every token
    "completion_mask": [bad for bad in BAD_MASK if bad is not None] + GAPS,
    "reduction": BAD_CHOICE,
}
ENUMERATED = {"ref_log_probs": LOG_P, "rewards": LOG_P, "reward_scale": 1.0}
BAD_REF = [*WRONG_TYPE, LOG_P[:2], poisoned(LOG_P, NAN), torch.full((N,), -INF)]
ENUMERATED_BAD = {
    "ref_log_probs": BAD_REF,
    "rewards": BAD_ANSWER_REWARDS,
    "reward_scale": BAD_NUMBER,
}
REPORT = {
    "log_probs": LOG_P,
    "ref_log_probs": LOG_P,
    "answers": ANSWERS,
    "target_reward_scale": 1.0,
    "run_reward_scale": 1.0,
}

# function -> (a good call, argument -> bad values)
TABLE = {
    tokens.next_token_logits: (
        {"logits": LOGITS, "num_completion_tokens": 2},
        {
            "logits": [*WRONG_TYPE, LOGITS[0], LOGITS[:0]],
            "num_completion_tokens": [*BAD_COUNT, T, T + 1],
        },
    ),
    tokens.gather_log_probs: (
        {"logits": LOGITS, "token_ids": IDS},
        {"logits": BAD_LOGITS, "token_ids": BAD_IDS, "temperature": POSITIVE},
    ),
    tokens.entropy_from_logits: (
        {"logits": LOGITS},
        {"logits": BAD_LOGITS, "temperature": POSITIVE},
    ),
    tokens.log_probs_from_hidden: (
        {"hidden": rand(B, T, H), "lm_head_weight": rand(V, H), "token_ids": IDS},
        {
            "hidden": [*WRONG_TYPE, rand(B, T, H + 1), rand(T, H), rand(0, T, H)]
            + [poisoned(rand(B, T, H), bad) for bad in (NAN, INF)],
            "lm_head_weight": [
                *WRONG_TYPE,
                rand(V, H).T,
                rand(V, H).long(),
                poisoned(rand(V, H), NAN),
            ],
            "token_ids": BAD_IDS,
            "temperature": POSITIVE,
            "chunk_size": BAD_COUNT,
        },
    ),
    tokens.token_scores_from_hidden: (
        {
            "hidden": rand(B, H),
            "lm_head_weight": rand(V, H),
            "token_ids": IDS[:, 0],
            "bias": rand(V),
        },
        {
            "hidden": [*WRONG_TYPE, rand(B, H + 1), poisoned(rand(B, H), NAN)],
            "lm_head_weight": [*WRONG_TYPE, rand(V, H).T, rand(V, H).long()],
            "token_ids": [*WRONG_TYPE, IDS, IDS[:, 0] + V],
            "bias": [[1.0], "text", rand(V + 1), rand(V, 1), poisoned(rand(V), NAN)],
            "temperature": POSITIVE,
            "chunk_size": BAD_COUNT,
            "product_dtype": ["float32", torch.long, 16],
        },
    ),
    tokens.log_probs_from_logits: (
        {"logits": LOGITS},
        {"logits": [*WRONG_TYPE, LOGITS.long()], "temperature": POSITIVE},
    ),
    tokens.masked_sum: (
        {"values": TOKENS, "mask": MASK},
        {"values": BAD_TOKENS, "mask": BAD_MASK[:-1]},
    ),
    tokens.masked_mean: (
        {"values": TOKENS, "mask": MASK},
        {"values": BAD_TOKENS, "mask": BAD_MASK},
    ),
    advantages.group_normalized: (
        {"rewards": ROWS, "num_generations": G},
        {
            "rewards": [bad for bad in BAD_ROWS if getattr(bad, "shape", 0) != (3,)]
            + [ROWS[:3], ROWS[:0]],
            "num_generations": BAD_GROUPS,
            "eps": BAD_NUMBER,
        },
    ),
    advantages.pass_at_k_advantages: (
        {"rewards": ROWS, "num_generations": G, "k": 2},
        {
            "rewards": [bad for bad in BAD_ROWS if getattr(bad, "shape", 0) != (3,)]
            + [ROWS[:3], ROWS[:0]],
            "num_generations": BAD_GROUPS,
            "k": [*BAD_COUNT, G + 1],
            "eps": BAD_NUMBER,
        },
    ),
    advantages.whiten: (
        {"values": TOKENS, "mask": MASK},
        {
            "values": BAD_TOKENS,
            "mask": [*BAD_MASK[:-1], torch.zeros_like(MASK)],
            "eps": BAD_NUMBER,
        },
    ),
    advantages.reinforce_pp_advantages: (
        {"rewards": ROWS, "completion_mask": MASK},
        {
            "rewards": BAD_ROWS,
            "completion_mask": [
                b for b in BAD_MASK if getattr(b, "shape", 0) != (4, 2)
            ],
        },
    ),
    advantages.gae: (
        {"rewards": ROWS, "values": TOKENS, "completion_mask": MASK},
        {
            "rewards": BAD_ROWS,
            "values": BAD_TOKENS,
            "completion_mask": BAD_MASK,
            "discount": [*BAD_NUMBER, 1.1],
            "gae_lambda": [*BAD_NUMBER, 1.1],
        },
    ),
    losses.flowrl_residuals: (FLOWRL, FLOWRL_BAD),
    losses.sequence_importance_weights: (
        BATCH,
        BATCH_BAD | CLIPS_BAD | {"importance": ["Clip", "max", None, 3]},
    ),
    losses.flowrl_loss: (
        FLOWRL | BATCH,
        FLOWRL_BAD
        | BATCH_BAD
        | CLIPS_BAD
        | {"importance": ["Clip", "max", None, 3], "reduction": BAD_CHOICE},
    ),
    losses.step_loss: (
        FLOWRL
        | BATCH
        | {"log_z": ROWS[: B // G], "num_generations": G, "reward_scale": 8.0},
        FLOWRL_BAD
        | BATCH_BAD
        | {"log_z": [*BAD_ROWS, ROWS], "num_generations": BAD_GROUPS},
    ),
    losses.flowrl_terms: (
        FLOWRL | BATCH,
        FLOWRL_BAD | BATCH_BAD | CLIPS_BAD | {"importance": ["Clip", "max", None, 3]},
    ),
    losses.trajectory_balance_loss: (
        SEQUENCES | {"log_z": ROWS},
        SEQUENCES_BAD | {"log_z": BAD_ROWS, "reduction": BAD_CHOICE},
    ),
    losses.vargrad_loss: (
        GROUPED,
        GROUPED_BAD | {"num_generations": [*BAD_GROUPS, 1], "reduction": BAD_CHOICE},
    ),
    losses.subtrajectory_balance_loss: (
        FLOWS,
        FLOWS_BAD | {"subtb_lambda": POSITIVE},
    ),
    losses.detailed_balance_loss: (FLOWS, FLOWS_BAD),
    losses.clipped_surrogate: (
        {"log_probs": TOKENS, "old_log_probs": TOKENS, "advantages": TOKENS},
        dict.fromkeys(("log_probs", "old_log_probs", "advantages"), BAD_PER_TOKEN)
        | CLIPS_BAD,
    ),
    losses.reinforce_pp_loss: (
        SURROGATE,
        SURROGATE_BAD | {"advantages": BAD_ADVANTAGES, "kl_coef": [*BAD_NUMBER, 0.1]},
    ),
    losses.grpo_loss: (
        SURROGATE | {"ref_log_probs": TOKENS, "kl_coef": 0.1},
        SURROGATE_BAD
        | {
            "advantages": BAD_ADVANTAGES,
            "kl_coef": BAD_NUMBER,
            "ref_log_probs": BAD_TOKENS,
        },
    ),
    losses.dapo_loss: (
        SURROGATE | {"num_generations": G},
        SURROGATE_BAD | {"advantages": BAD_ROWS, "num_generations": BAD_GROUPS},
    ),
    losses.ppo_loss: (
        SURROGATE | {"values": TOKENS, "old_values": TOKENS, "returns": TOKENS},
        SURROGATE_BAD
        | {
            "advantages": BAD_ADVANTAGES,
            "dual_clip": [1.0, 0.5, NAN, INF],
            "values": [bad for bad in BAD_TOKENS if bad is not None],
            "old_values": [bad for bad in BAD_TOKENS if bad is not None],
            "returns": BAD_TOKENS,
            "value_coef": BAD_NUMBER,
            "value_clip": POSITIVE,
        },
    ),
    losses.kl_reinforce_loss: (
        {k: v for k, v in GROUPED.items() if k != "reward_scale"} | {"kl_coef": 0.1},
        {k: v for k, v in GROUPED_BAD.items() if k != "reward_scale"}
        | {"kl_coef": BAD_NUMBER, "reduction": BAD_CHOICE},
    ),
    losses.clip_fraction: (
        BATCH,
        BATCH_BAD | CLIPS_BAD | {"level": ["tokens", None]},
    ),
    partition.unlearned_log_z: (
        {
            "kind": "random",
            "indices": torch.arange(3),
            "value": 1.0,
            "seed": 0,
            "step": 2,
        },
        {
            "kind": ["learned", None],
            "indices": [*WRONG_TYPE, torch.zeros(2), torch.zeros(2, 1).long()],
            "value": [NAN, INF, "1", None],
            "seed": [-1, 1.5, None],
            "step": [-1, 1.5, None],
        },
    ),
    partition.LogPartitionHead: (
        {"hidden_size": H},
        {
            "hidden_size": BAD_COUNT,
            "num_layers": BAD_COUNT,
            "dropout": [*BAD_NUMBER, 1.0],
        },
    ),
    partition.LogPartitionHead(H): (
        {"features": rand(B, H)},
        {
            "features": [
                *WRONG_TYPE,
                rand(H),
                rand(B, H + 1),
                rand(B, H).long(),
                rand(0, H),
                poisoned(rand(B, H), NAN),
            ]
        },
    ),
    partition.LogZTable: ({"num_prompts": 3}, {"num_prompts": BAD_COUNT}),
    partition.LogZTable(3): (
        {"indices": torch.tensor([0, 2])},
        {
            "indices": [
                *WRONG_TYPE,
                torch.tensor([0, 3]),
                torch.tensor([-1]),
                torch.tensor([0.0]),
                torch.tensor([[0]]),
                torch.tensor(0),
            ]
        },
    ),
    partition.log_target_ratios: (SEQUENCES, SEQUENCES_BAD),
    partition.vargrad_log_z: (GROUPED, GROUPED_BAD),
    partition.importance_log_z: (GROUPED, GROUPED_BAD),
    exact.reference_log_partition: (
        ENUMERATED | {"exhaustive": True},
        ENUMERATED_BAD | {"ref_log_probs": [*BAD_REF, LOG_P + 0.1, LOG_P - 0.1]},
    ),
    exact.exact_target: (
        ENUMERATED,
        ENUMERATED_BAD | {"rewards": [*BAD_ANSWER_REWARDS, torch.full((N,), -INF)]},
    ),
    exact.gradient_noise: (
        ENUMERATED | {"log_probs": LOG_P, "log_z": 0.0},
        ENUMERATED_BAD
        | {
            "log_probs": BAD_LOG_PROBS + INCOMPLETE,
            "log_z": [NAN, INF, torch.tensor(NAN)],
        },
    ),
    exact.exact_log_flows: (
        {
            "completion_ids": torch.arange(N).unsqueeze(1),
            "ref_log_probs": LOG_P.unsqueeze(1),
            "rewards": torch.tensor([1.0, 0.0, 0.5]),
            "completion_mask": torch.ones(N, 1, dtype=torch.bool),
            "reward_scale": 2.0,
        },
        {
            "completion_ids": [*WRONG_TYPE, LOG_P, torch.arange(N)],
            "ref_log_probs": [
                *WRONG_TYPE,
                LOG_P,
                LOG_P.unsqueeze(1) - 1.0,
                poisoned(LOG_P.unsqueeze(1), NAN),
            ],
            "rewards": [*WRONG_TYPE, torch.zeros(N, 1), poisoned(LOG_P, NAN)],
            "completion_mask": [*WRONG_TYPE, torch.ones(N, 1), torch.zeros(N, 1) > 0],
            "reward_scale": [-1.0, NAN, "two"],
        },
    ),
    exact.length_normalized_target: (
        ENUMERATED | {"lengths": torch.tensor([1, 2, 3]), "log_z": 0.0},
        ENUMERATED_BAD
        | {
            "lengths": [*WRONG_TYPE, LOG_P, torch.tensor([0, 1, 2])],
            "log_z": [NAN, INF, torch.tensor(NAN)],
        },
    ),
    exact.optimal_log_z: (
        ENUMERATED | {"log_probs": LOG_P},
        ENUMERATED_BAD | {"log_probs": BAD_LOG_PROBS + INCOMPLETE},
    ),
    exact.answers_target: (
        {"ref_log_probs": LOG_P, "answers": ANSWERS, "reward_scale": 1.0},
        {
            "ref_log_probs": BAD_REF,
            "answers": [
                answers(rewards=poisoned(ANSWERS.rewards, NAN)),
                answers(correct=torch.zeros(N, dtype=torch.bool), exhaustive=False),
            ],
            "reward_scale": BAD_NUMBER[:3],
        },
    ),
    exact.exact_report: (
        REPORT,
        {
            "log_probs": BAD_LOG_PROBS + INCOMPLETE,
            "ref_log_probs": BAD_REF,
            "answers": [
                answers(rewards=poisoned(ANSWERS.rewards, NAN)),
                answers(correct=torch.zeros(N, dtype=torch.bool)),
                answers(correct=torch.tensor([1, 0, 1])),
                answers(groups=torch.tensor([-1, -1, -1])),
            ],
            "target_reward_scale": BAD_NUMBER[:3],
            "run_reward_scale": BAD_NUMBER,
        },
    ),
    exact.mean_report: ({"reports": None}, {"reports": [[], ()]}),
    metrics.kl_divergence: (
        {"log_p": LOG_P, "log_q": LOG_P},
        {"log_p": BAD_LOG_PROBS + INCOMPLETE, "log_q": [*BAD_LOG_PROBS, LOG_P[:2]]},
    ),
    metrics.total_variation: (
        {"log_p": LOG_P, "log_q": LOG_P},
        {"log_p": BAD_LOG_PROBS + INCOMPLETE, "log_q": BAD_LOG_PROBS + INCOMPLETE},
    ),
    metrics.js_divergence: (
        {"log_p": LOG_P, "log_q": LOG_P},
        {"log_p": BAD_LOG_PROBS + INCOMPLETE, "log_q": BAD_LOG_PROBS + INCOMPLETE},
    ),
    metrics.effective_groups: (
        {"log_probs": LOG_P, "groups": torch.tensor([0, 1, -1])},
        {
            "log_probs": [*BAD_LOG_PROBS, LOG_P[:2]],
            "groups": [torch.tensor([-1, -1, -1]), torch.tensor([0, 1]), LOG_P],
        },
    ),
    metrics.accuracy_after_filter: (
        {"fits_prob": LOG_P.exp(), "right_prob": LOG_P.exp() / 2, "num_samples": 2},
        {
            "fits_prob": [LOG_P.exp() / 4, 2 * LOG_P.exp() + 1, LOG_P.exp()[:2]],
            "right_prob": [LOG_P, 2 * LOG_P.exp()],
            "num_samples": [0, 1.5],
        },
    ),
    exact.target_accuracy: (
        {"accuracy": torch.tensor([0.2, 0.9]), "reward_scale": 1.0},
        {
            "accuracy": [
                0.2,
                torch.tensor([[0.2]]),
                torch.tensor([1]),
                torch.tensor([-0.1, 0.5]),
                torch.tensor([0.5, 1.1]),
                torch.tensor([0.5, NAN]),
            ],
            "reward_scale": BAD_NUMBER,
        },
    ),
    metrics.effective_number: (
        {"log_p": LOG_P},
        {"log_p": BAD_LOG_PROBS + INCOMPLETE},
    ),
    metrics.mode_coverage: (
        {
            "log_probs": LOG_P,
            "target_log_probs": LOG_P,
            "groups": torch.tensor([0, 1, -1]),
        },
        {
            "log_probs": BAD_LOG_PROBS,
            "target_log_probs": BAD_LOG_PROBS + INCOMPLETE,
            "groups": [*WRONG_TYPE, LOG_P, torch.tensor([-1, -1, -1])],
            "share": [*POSITIVE, 1.1],
        },
    ),
    metrics.pass_at_k: (
        {"num_samples": 8, "num_correct": 3, "k": 4},
        {
            "num_samples": [*BAD_COUNT, 3],
            "num_correct": [
                -1,
                9,
                2.5,
                None,
                torch.tensor([1, 9]),
                torch.tensor([1.0]),
            ],
            "k": [*BAD_COUNT, 9],
        },
    ),
    metrics.exact_pass_at_k: (
        {"success_prob": 0.5, "k": 4},
        {
            "success_prob": [
                -0.1,
                1.1,
                NAN,
                torch.tensor([0.5, NAN]),
                torch.tensor([1]),
            ],
            "k": BAD_COUNT,
        },
    ),
    metrics.effective_sample_size: (
        {"log_weights": ROWS},
        {
            "log_weights": [
                *WRONG_TYPE,
                torch.tensor(0.5),
                ROWS[:0],
                ROWS.long(),
                poisoned(ROWS, NAN),
                poisoned(ROWS, -INF),
            ]
        },
    ),
    metrics.expected_distinct: (
        {"probs": LOG_P.exp(), "num_samples": 4},
        {
            "probs": [
                *WRONG_TYPE,
                LOG_P,
                torch.tensor(0.5),
                poisoned(LOG_P.exp(), NAN),
            ],
            "num_samples": BAD_COUNT,
        },
    ),
    metrics.distinct_solutions: (
        {"solutions": ["a", "b"], "correct": [True, False]},
        {"correct": [[True], []]},
    ),
    metrics.distinct_n: (
        {"sequences": ["abc"], "n": 2},
        {"sequences": [[], ["a"], [[]]], "n": [*BAD_COUNT, 4]},
    ),
    metrics.self_bleu: (
        {"texts": ["a", "b"]},
        {"texts": [[], ["one"]], "tokenize": ["words"]},
    ),
    metrics.compression_ratio: ({"texts": ["a"]}, {"texts": [[]]}),
    metrics.ngram_similarity: (
        {"sequences": ["ab", "ba"]},
        {"sequences": [[]], "n": BAD_COUNT},
    ),
    metrics.avg_at_k: ({"correct": [True]}, {"correct": [[]]}),
    metrics.answer_entropy: ({"solutions": ["a"]}, {"solutions": [[]]}),
    metrics.expected_answer_entropy: (
        {"probs": LOG_P.exp(), "num_samples": 4},
        {
            "probs": [*WRONG_TYPE, LOG_P, LOG_P.exp() / 2, poisoned(LOG_P.exp(), NAN)],
            "num_samples": BAD_COUNT,
        },
    ),
    metrics.expected_coverage: (
        {"probs": LOG_P.exp(), "num_samples": 4},
        {"probs": [LOG_P, poisoned(LOG_P.exp(), NAN)], "num_samples": BAD_COUNT},
    ),
    metrics.judge_diversity: (
        {"judge": lambda _prompt, texts: len(texts), "responses": {"p": ["a", "b"]}},
        {
            "judge": [lambda _p, _t, v=value: v for value in (0, 6, NAN, "3")],
            "responses": [{}, {"p": ["a"]}, {"p": ["a", "b"], "q": []}],
            "max_characters": BAD_COUNT[:-1],  # None shows all
        },
    ),
    metrics.calibrate_log_z: (
        {"learned": LOG_P, "exact": LOG_P},
        {
            "learned": [*WRONG_TYPE, LOG_P[1:], poisoned(LOG_P, NAN)],
            "exact": [torch.tensor(1.0), poisoned(LOG_P, NAN)],
        },
    ),
    metrics.stated_pass_rate: (
        {"log_z": LOG_P, "reward_scale": 8.0},
        {
            "log_z": [*WRONG_TYPE, poisoned(LOG_P, NAN)],
            "reward_scale": [0.0, -1.0, NAN, "8"],
        },
    ),
    metrics.reliability: (
        {"stated": LOG_P.exp(), "observed": LOG_P.exp()},
        {
            "stated": [LOG_P, LOG_P.exp()[1:], poisoned(LOG_P.exp(), NAN)],
            "observed": [LOG_P, poisoned(LOG_P.exp(), NAN)],
            "bins": BAD_COUNT,
        },
    ),
    metrics.calibration_error: (
        {"bins": metrics.reliability(LOG_P.exp(), LOG_P.exp())},
        {"bins": [()]},
    ),
    metrics.rank_correlation: (
        {"x": LOG_P, "y": LOG_P},
        {
            "x": [*WRONG_TYPE, LOG_P[:1], poisoned(LOG_P, NAN)],
            "y": [LOG_P[1:], poisoned(LOG_P, NAN)],
        },
    ),
    metrics.vendi_score: (
        {"similarity": torch.eye(N)},
        {
            "similarity": [
                *WRONG_TYPE,
                torch.ones(2, 3),
                2 * torch.eye(N),
                LOG_P,
                torch.tensor([[1.0, 0.5], [0.0, 1.0]]),
                poisoned(torch.eye(N), NAN),
                torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]),
            ]
        },
    ),
}
# No good call is in the table: it needs reports or an optional package.
NO_GOOD_CALL = {exact.mean_report, metrics.self_bleu}


def name_of(function):
    return getattr(function, "__name__", f"{type(function).__name__}.forward")


CASES = [
    pytest.param(
        function, good, argument, bad, id=f"{name_of(function)}-{argument}-{i}"
    )
    for function, (good, table) in TABLE.items()
    for argument, bads in table.items()
    for i, bad in enumerate(bads)
]


@pytest.mark.parametrize(("function", "good", "argument", "bad"), CASES)
def test_bad_input_is_refused_with_got_expected_fix(function, good, argument, bad):
    with pytest.raises(ValueError) as caught:
        function(**(good | {argument: bad}))
    message = str(caught.value)
    assert "; expected " in message and " Fix: " in message
    assert message.startswith("`")


@pytest.mark.parametrize("function", [f for f in TABLE if f not in NO_GOOD_CALL])
def test_the_good_call_is_good(function):
    function(**TABLE[function][0])


def test_the_message_names_the_bad_argument():
    with pytest.raises(ValueError, match=r"^`rewards` has shape \(4, 1\)"):
        losses.flowrl_loss(**(FLOWRL | BATCH | {"rewards": ROWS.unsqueeze(-1)}))
    with pytest.raises(ValueError, match=r"^`old_log_probs` has 1 NaN"):
        losses.grpo_loss(**(SURROGATE | {"old_log_probs": poisoned(TOKENS, NAN)}))
    with pytest.raises(ValueError, match=r"keeps no token in row\(s\) \[1\]"):
        tokens.masked_mean(TOKENS, EMPTY_ROW)
    with pytest.raises(ValueError, match="did you mean 'clip'"):
        losses.flowrl_loss(**(FLOWRL | BATCH | {"importance": "clipped"}))
    with pytest.raises(ValueError, match="does not divide the 4 sequences"):
        advantages.group_normalized(ROWS, 3)


def test_the_k_estimators_need_equal_shapes():
    for estimator in (losses.k1, losses.k2, losses.k3):
        for bad in ([1.0], TOKENS[:2], TOKENS.long(), TOKENS.unsqueeze(0)):
            with pytest.raises(ValueError, match=r"expected .* Fix: "):
                estimator(TOKENS, bad)
            with pytest.raises(ValueError, match=r"expected .* Fix: "):
                estimator(bad, TOKENS)


def test_every_public_function_is_in_the_table():
    tested = {name_of(function) for function in TABLE}
    exempt = {"at_least_float32", "k1", "k2", "k3"}
    exempt.add("start_log_z")  # it changes a module: test_partition has it
    for module in (tokens, advantages, losses, partition, exact, metrics):
        for name in module.__all__:
            if inspect.isfunction(getattr(module, name)):
                assert name in tested | exempt, f"{module.__name__}.{name}"


def test_the_three_parts_of_a_message():
    error = bad_input("x", "is 3", "4", "add 1")
    assert str(error) == "`x` is 3; expected 4. Fix: add 1."
