"""The protocol of text tasks: parts add up, and nothing escapes the judge."""

from __future__ import annotations

import pytest

from flowrl_lab.tasks.text import (
    RewardWeights,
    Scored,
    TextTask,
    combine_parts,
    score_safely,
)

WEIGHTS = RewardWeights(correct=1.0, format=0.25, length=0.5)


def test_parts_add_up_to_the_reward():
    scored = combine_parts(
        correct=True, well_formed=True, used=0.5, reason="right", weights=WEIGHTS
    )
    assert scored.parts == {"correct": 1.0, "format": 0.25, "length": 0.25}
    assert scored.reward == 1.5


@pytest.mark.parametrize(("used", "length"), [(-1.0, 0.5), (0.0, 0.5), (7.0, 0.0)])
def test_the_used_share_is_cut(used, length):
    scored = combine_parts(
        correct=True, well_formed=False, used=used, reason="", weights=WEIGHTS
    )
    assert scored.parts == {"correct": 1.0, "format": 0.0, "length": length}


def test_a_short_wrong_answer_is_not_paid_for_being_short():
    scored = combine_parts(
        correct=False, well_formed=True, used=0.0, reason="no", weights=WEIGHTS
    )
    assert scored.reward == 0.25
    assert scored.parts["length"] == 0.0


def test_a_part_of_weight_zero_is_left_out():
    scored = combine_parts(
        correct=True, well_formed=True, used=0.0, reason="", weights=RewardWeights()
    )
    assert scored == Scored(1.0, True, "", {"correct": 1.0})


@pytest.mark.bad_input
def test_bad_scores_and_weights_are_refused():
    with pytest.raises(ValueError, match=r"reward is nan.*Fix: score what"):
        Scored(float("nan"), False, "")
    with pytest.raises(ValueError, match=r"sum to 0.5; expected the reward, 1"):
        Scored(1.0, True, "", {"correct": 0.5})
    with pytest.raises(ValueError, match=r"weight of 'length' is -1"):
        RewardWeights(length=-1)


def test_a_judge_that_fails_costs_the_reward_and_nothing_else():
    def judge(completion: str) -> Scored:
        raise RuntimeError(f"cannot\nread {completion}")

    scored = score_safely(judge, "x", {"correct": 1.0})
    assert scored.reward == 0.0
    assert scored.parts == {"correct": 0.0}
    assert scored.reason == "could not be judged: RuntimeError: cannot read x"


def test_an_interrupt_passes_through_the_judge():
    def judge(completion: str) -> Scored:
        raise KeyboardInterrupt(completion)

    with pytest.raises(KeyboardInterrupt):
        score_safely(judge, "x")


def test_the_protocol_can_be_checked():
    class Echo:
        name = "echo"
        max_completion_tokens = 4
        stop = ("\n",)

        def prompts(self, split: str) -> tuple[str, ...]:
            return (split,)

        def score(self, prompt: str, completion: str) -> Scored:
            return Scored(float(prompt == completion), prompt == completion, "")

    assert isinstance(Echo(), TextTask)
    assert not isinstance(object(), TextTask)
