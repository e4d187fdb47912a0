"""Landscapes and strings: targets, verifiers, enumeration, refusals."""

import math

import pytest
import torch

from flowrl_lab.tasks import TASKS, load_task
from flowrl_lab.tasks.landscape import figure1_log_mixture


def _target(task, prompt):
    rewards = task.answers(prompt).rewards.double()
    return torch.softmax(task.reward_scale * rewards, dim=0)


def _normal(x, mean, variance):
    return math.exp(-((x - mean) ** 2) / (2 * variance))


def test_figure1_target_is_the_papers_mixture():
    weights = [
        0.25 * _normal(s, 20, 5) + 0.5 * _normal(s, 50, 5) + 0.25 * _normal(s, 80, 5)
        for s in range(100)
    ]
    expected = torch.tensor(weights, dtype=torch.float64)
    expected /= expected.sum()
    for reward_scale in (5.0, 15.0):
        task = load_task("landscape", reward_scale=reward_scale)
        prompt = task.prompts("train")[0]
        # Rewards are float32, so the scaled log-probabilities are good to 1e-6.
        torch.testing.assert_close(_target(task, prompt), expected, rtol=2e-6, atol=0)
        assert task.answers(prompt).rewards.max() == 1.0
    assert torch.logsumexp(figure1_log_mixture(), 0).abs() < 1e-12


def test_figure1_modes_are_two_standard_deviations_wide():
    answers = load_task("landscape").answers("landscape figure1")
    inside = [s for s in range(100) if answers.correct[s]]
    assert inside == [*range(16, 25), *range(46, 55), *range(76, 85)]
    assert answers.groups[[16, 50, 84, 35]].tolist() == [0, 1, 2, -1]
    assert torch.isfinite(answers.rewards).all()


@pytest.mark.parametrize(("variant", "modes"), [("six_modes", 6), ("two_modes", 2)])
def test_bumps_are_bounded_and_equally_high(variant, modes):
    task = load_task("landscape", variant=variant)
    answers = task.answers(task.prompts("train")[0])
    assert answers.rewards.min() >= 0 and answers.rewards.max() == 1
    assert int((answers.rewards == 1).sum()) == modes
    assert sorted(set(answers.groups.tolist())) == list(range(-1, modes))
    target = _target(task, task.prompts("train")[0])
    mass = [float(target[answers.groups == k].sum()) for k in range(modes)]
    assert min(mass) > 0.05 and sum(mass) > 0.85


def test_custom_rewards_and_their_modes():
    task = load_task("landscape", rewards=[1.0, 0.9, 0.0, 0.2, 0.8, 0.0])
    answers = task.answers(task.prompts("heldout")[0])
    assert answers.groups.tolist() == [0, 0, -1, -1, 1, -1]
    assert answers.correct.tolist() == [True, True, False, False, True, False]
    assert task.vocab_size == 6 and len(answers) == 6 and answers.exhaustive


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "rewards",
    [[1.0], [], [[1.0, 2.0]], [1.0, float("nan")], [1.0, float("inf")], ["a", "b"]],
)
def test_custom_rewards_refused(rewards):
    with pytest.raises(ValueError, match="rewards: got"):
        load_task("landscape", rewards=rewards)


def test_both_splits_of_a_landscape_hold_its_one_prompt():
    task = load_task("landscape")
    assert task.prompts("train") == task.prompts("heldout")
    batch = task.encode(task.prompts("train") * 3)
    assert batch.indices.tolist() == [0, 0, 0] and batch.prompt_ids.shape == (3, 1)


@pytest.mark.bad_input
def test_load_task_names_the_mistake():
    with pytest.raises(ValueError, match="did you mean 'landscape'"):
        load_task("landscpae")
    with pytest.raises(ValueError, match="did you mean 'variant'"):
        load_task("landscape", varient="figure1")
    with pytest.raises(ValueError, match="six_modes"):
        load_task("landscape", variant="seven_modes")
    with pytest.raises(ValueError, match="leave variant out"):
        load_task("landscape", variant="figure1", rewards=[0.0, 1.0])
    with pytest.raises(ValueError, match="reward_scale: got 0"):
        load_task("landscape", reward_scale=0)
    assert {"landscape", "strings", "make_number"} <= set(TASKS)


def test_words_are_points_coarse_to_fine():
    task = load_task("strings", length=4, alphabet=8)
    # x digits 1, 2 and y digits 3, 4 in octal: x = 1·8 + 2, y = 3·8 + 4.
    x, y = task.points(torch.tensor([[1, 3, 2, 4]]))
    assert (int(x), int(y)) == (10, 28)
    assert task.decode(
        torch.tensor([[1, 3, 2, 4]]), torch.ones(1, 4, dtype=torch.bool)
    ) == ["bdce"]


@pytest.mark.bad_input
def test_every_word_is_one_pixel():
    task = load_task("strings", length=5, alphabet=3)
    assert (task.width, task.height) == (27, 9)
    image = task.picture(torch.arange(243.0))
    assert sorted(image.flatten().tolist()) == list(range(243))
    with pytest.raises(ValueError, match="values: got shape"):
        task.picture(torch.zeros(10))


@pytest.mark.full
def test_full_size_strings_have_262144_words_and_eight_blobs():
    task = load_task("strings")
    answers = task.answers(task.prompts("train")[0])
    assert len(answers) == 262_144 and (task.width, task.height) == (512, 512)
    assert len(torch.unique(answers.completion_ids, dim=0)) == 262_144
    assert sorted(set(answers.groups.tolist())) == list(range(-1, 8))
    target = _target(task, answers.prompt)
    for blob in range(8):
        mass = float(target[answers.groups == blob].sum())
        assert 0.07 < mass < 0.14


def test_score_agrees_with_the_enumerated_rewards():
    task = load_task("strings", length=4, alphabet=4, train_prompts=3)
    texts = (task.prompts("train")[2], task.prompts("heldout")[0])
    tables = [task.answers(text) for text in texts]
    ids = torch.cat([table.completion_ids for table in tables])
    mask = torch.ones_like(ids, dtype=torch.bool)
    scores = task.score(task.encode(texts), ids, mask, 256)
    expected = torch.cat([table.rewards for table in tables])
    torch.testing.assert_close(scores, expected)
    assert not torch.equal(tables[0].rewards, tables[1].rewards)
    # The reward by hand, from the nearest centre, for one word.
    x, y = (int(v) for v in task.points(ids[37:38]))
    centres = task._centres[2].tolist()
    nearest = min(math.hypot((x - a) / 16, (y - b) / 16) for a, b in centres)
    by_hand = math.exp(-(nearest**2) / (2 * 0.06**2))
    torch.testing.assert_close(float(scores[37]), by_hand, rtol=1e-5, atol=1e-8)


def test_prompts_of_strings_are_split_and_encoded_apart():
    task = load_task("strings", length=2, alphabet=2, train_prompts=3)
    texts = task.prompts("train") + task.prompts("heldout")
    assert len(set(texts)) == 4
    batch = task.encode(texts)
    assert batch.indices.tolist() == [0, 1, 2, 3]
    assert batch.prompt_ids.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    same = load_task("strings", length=2, alphabet=2, heldout_prompts=0)
    assert same.prompts("heldout") == same.prompts("train")
    again = load_task("strings", length=2, alphabet=2, train_prompts=3)
    assert torch.equal(again.answers(texts[1]).rewards, task.answers(texts[1]).rewards)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "options"),
    [("landscape", {}), ("strings", {"length": 3, "alphabet": 4})],
)
def test_bad_completions_are_refused(name, options):
    task = load_task(name, **options)
    prompts = task.encode(task.prompts("train")[:1])
    length, vocab = task.max_completion_tokens, task.vocab_size
    good = torch.zeros(2, length, dtype=torch.long)
    mask = torch.ones_like(good, dtype=torch.bool)
    assert task.score(prompts, good, mask, 2).shape == (2,)
    cases = [
        (good + vocab, mask, "expected 0 to"),
        (good - 1, mask, "expected 0 to"),
        (good.repeat(1, 2), mask.repeat(1, 2), "got shape"),
        (good, ~mask, "expected True everywhere"),
        (good, mask[:, :0], "completion_mask"),
        (good.float(), mask, "torch.int64"),
        (good[:1], mask[:1], "got shape"),
    ]
    for ids, keep, message in cases:
        with pytest.raises(ValueError, match=message):
            task.score(prompts, ids, keep, 2)
    for texts in ((), ("nowhere",), "landscape figure1"):
        with pytest.raises(ValueError, match="prompt"):
            task.encode(texts)
    with pytest.raises(ValueError, match="prompt"):
        task.answers("nowhere")
    with pytest.raises(ValueError, match="split"):
        task.prompts("test")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "options",
    [
        {"length": 1},
        {"alphabet": 27},
        {"blobs": 17},
        {"length": 7},
        {"blob_width": 0.0},
        {"reward_scale": float("nan")},
        {"train_prompts": 0},
        {"length": 2.5},
    ],
)
def test_string_options_refused(options):
    with pytest.raises(ValueError, match="got"):
        load_task("strings", **options)


def test_copies_of_a_landscape_are_separate_runs():
    """Every copy has the rewards of the one, and a row of its own in the table."""
    from flowrl_lab import Run, preset

    one = load_task("landscape", variant="six_modes")
    three = load_task("landscape", variant="six_modes", copies=3)
    names = three.prompts("train")
    assert len(names) == 3 and three.prompts("heldout") == names
    assert three.encode(names).indices.tolist() == [0, 1, 2]
    for name in names:
        (alone,) = one.prompts("train")
        assert torch.equal(three.answers(name).rewards, one.answers(alone).rewards)
    run = Run(
        preset(
            "landscape",
            "flowrl",
            steps=3,
            prompts_per_step=3,
            num_generations=8,
            task_options={"variant": "six_modes", "copies": 3},
        )
    )
    assert [record.step for record in run] == [0, 1, 2, 3]
    rows = run.policy.logits.detach()[:, 0]
    assert rows.shape == (3, 100) and not torch.equal(rows[0], rows[1])
    for copies in (0, 1001):
        with pytest.raises(ValueError, match="copies: got"):
            load_task("landscape", copies=copies)
