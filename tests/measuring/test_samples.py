"""Samples and their figures: against enumeration, formulas and made-up policies."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from flowrl_lab.exact import answers_target
from flowrl_lab.measuring.noise_floors import make_measures, measure_samples
from flowrl_lab.measuring.samples import (
    PromptSamples,
    draw_perfect_samples,
    draw_samples,
    judge_texts,
    needs_words,
)
from flowrl_lab.metrics import CountingJudge, effective_number
from flowrl_lab.tasks import load_task
from flowrl_lab.tasks.text import Scored
from flowrl_lab.types import Completions

PROMPT = "24!37:"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def target_of(task, prompt: str):
    answers = task.answers(prompt)
    even = torch.zeros(len(answers), dtype=torch.float64).log_softmax(0)
    return answers, answers_target(even, answers, reward_scale=task.reward_scale)


@pytest.fixture(scope="module")
def number():
    """make_number: one prompt's answers and an uneven target over them."""
    answers = load_task("make_number").answers(PROMPT)
    slope = torch.linspace(0, 4, len(answers), dtype=torch.float64)
    return answers, slope.log_softmax(0)


class Scripted:
    """A policy that writes what it is told to: one row of tokens a text."""

    device = torch.device("cpu")

    def __init__(self, rows: list[list[int]], pad: int):
        self.rows, self.pad = rows, pad

    def sample(self, prompts, num_generations, *, temperature, generator):  # noqa: ARG002
        assert len(prompts) == 1 and num_generations == len(self.rows)
        width = max(map(len, self.rows))
        ids = torch.tensor([[*r, *[self.pad] * (width - len(r))] for r in self.rows])
        return Completions(ids, ids != self.pad, torch.zeros(ids.shape))


# ------------------------------------------------------------------------ samples


def test_samples_are_judged_by_the_list():
    task = load_task("make_number")
    end = task.eos_id

    def tokens(text):
        return ["0123456789+-*=!:".index(c) for c in text]

    rows = [
        [*tokens("4*6"), end],
        [*tokens("6*4"), end],
        [*tokens("6*4=24"), end],
        tokens("4*6"),  # right letters, but it never ended
        [*tokens("4*5"), end],
    ]
    (samples,) = draw_samples(
        Scripted(rows, task.pad_id), task, [PROMPT], 5, generator=generator()
    )
    assert samples.texts == ("4*6", "6*4", "6*4=24", "4*6", "4*5")
    assert samples.correct == (True, True, True, False, False)
    assert len(set(samples.solutions)) == 5 and len(samples.right) == 3
    ideas = samples.ideas
    assert ideas[0] == ideas[1] == ideas[2] is not None
    assert ideas[3:] == (None, None)


@pytest.mark.parametrize("name", ["landscape", "strings"])
def test_samples_of_exhaustive_tasks(name):
    from flowrl_lab.policies.tabular import TabularPolicy

    task = load_task(name, **({"length": 2} if name == "strings" else {}))
    prompts = task.prompts("heldout")
    samples = draw_samples(
        TabularPolicy(task), task, prompts, 50, generator=generator()
    )
    for one, prompt in zip(samples, prompts, strict=True):
        answers = task.answers(prompt)
        rows = dict(zip(answers.labels, answers.correct.tolist(), strict=True))
        assert one.correct == tuple(rows[text] for text in one.texts)
    again = draw_samples(TabularPolicy(task), task, prompts, 50, generator=generator())
    assert again == samples


def test_a_perfect_sampler_draws_from_the_target(number):
    answers, target = number
    samples = draw_perfect_samples(answers, target, 20_000, generator=generator())
    counts = torch.bincount(torch.tensor(samples.solutions), minlength=len(answers))
    expected = 20_000 * target.exp()
    scatter = (expected * (1 - target.exp())).sqrt()
    assert ((counts - expected).abs() < 5 * scatter + 1).all()
    assert all(samples.correct)
    assert samples.texts[0] == answers.labels[samples.solutions[0]]


def test_texts_of_a_text_task_are_judged_by_its_verifier():
    class Greetings:
        def score(self, _prompt, completion):
            good = "hello" in completion
            return Scored(float(good), good, "because")

    samples = judge_texts(Greetings(), "greet", ["hello you", " hello you ", "bye"])
    assert samples.correct == (True, True, False)
    assert samples.solutions[0] == samples.solutions[1] and samples.ideas == ()
    assert needs_words([samples])
    measures = make_measures(3, words=True, ideas=False, judge=CountingJudge())
    figures = {f.key: f for f in measure_samples([samples], measures)}
    assert "distinct_ideas" not in figures
    assert figures["distinct_correct"].value == 1.0
    assert figures["distinct_2"].value == 1 / 2  # twice the pair hello you
    assert figures["judge"].value == 3.0  # two kinds of three
    for figure in figures.values():  # nothing is known of the target
        assert math.isnan(figure.perfect) and math.isnan(figure.exact)


# ----------------------------------------------------------------------- measures


def test_every_formula_is_the_mean_over_draws(number):
    """Exact expectations against 300 simulated draws of a distribution."""
    answers, target = number
    mixed = answers_mixed()
    for listed, log_probs in ((answers, target), mixed):
        measures = [m for m in make_measures(16, texts=False) if m.expected]
        draws = [
            draw_perfect_samples(listed, log_probs, 16, generator=generator(seed))
            for seed in range(300)
        ]
        assert {m.key for m in measures} >= {
            "avg",
            "pass@4",
            "pass@16",
            "distinct_correct",
            "distinct_ideas",
            "entropy",
        }
        for measure in measures:
            exact = measure.expected(log_probs.exp(), listed, 16)
            if math.isnan(exact):  # how many of the samples are right is chance
                assert measure.key == "entropy_correct" and listed is not answers
                continue
            values = [measure.of(draw) for draw in draws]
            error = statistics.stdev(values) / math.sqrt(len(values))
            assert abs(statistics.fmean(values) - exact) < 4 * error + 1e-9, measure.key


def answers_mixed():
    """A landscape: some states are right, most are not, and all are listed."""
    task = load_task("landscape", variant="six_modes")
    answers = task.answers(task.prompts("train")[0])
    even = torch.zeros(len(answers), dtype=torch.float64).log_softmax(0)
    return answers, even


def test_the_target_is_within_its_own_noise_and_a_collapsed_policy_is_not(number):
    answers, target = number
    measures = make_measures(32)
    collapsed = PromptSamples(PROMPT, ("4*6",) * 32, (0,) * 32, (True,) * 32, (1,) * 32)
    own = draw_perfect_samples(answers, target, 32, generator=generator(7))

    def distances(samples):
        figures = measure_samples(
            [samples],
            measures,
            answers=[answers],
            targets=[target],
            generator=generator(1),
        )
        return {
            f.key: (f.value - f.perfect) / f.perfect_spread
            for f in figures
            if f.perfect_spread > 1e-9
        }

    assert all(abs(d) < 4 for d in distances(own).values())
    found = distances(collapsed)
    assert found.keys() >= {
        "distinct_correct",
        "distinct_ideas",
        "entropy",
        "entropy_correct",
        "distinct_2",
        "self_bleu",
        "compression",
        "vendi",
    }
    for key, distance in found.items():
        sign = 1 if key in ("self_bleu", "compression") else -1
        assert sign * distance > 4, key


def test_the_noise_floor_of_few_samples_lies_below_the_truth(number):
    answers, target = number
    draws = [draw_perfect_samples(answers, target, 8, generator=generator())]
    measures = make_measures(8, texts=False)
    figures = {
        f.key: f
        for f in measure_samples(draws, measures, answers=[answers], targets=[target])
    }
    assert math.exp(figures["entropy"].perfect) < effective_number(target) / 2
    assert figures["distinct_correct"].perfect < 8
    # a perfect sampler's right ones are all of them: one quantity, by one formula
    assert figures["entropy_correct"].perfect == figures["entropy"].perfect
    assert math.isnan(figures["entropy_correct"].exact)  # of the samples: unknown


def test_means_and_errors_are_over_prompts():
    samples = [
        PromptSamples(str(i), ("a", "b"), ("a", "b"), good, ())
        for i, good in enumerate([(True, True), (False, False), (True, False)])
    ]
    figures = {
        f.key: f for f in measure_samples(samples, make_measures(2, ideas=False))
    }
    assert figures["avg"].value == 0.5 and figures["avg"].prompts == 3
    assert figures["avg"].error == pytest.approx(0.5 / math.sqrt(3))
    # of the prompt without a right answer there is no entropy of right ones
    assert figures["entropy_correct"].prompts == 2
    assert figures["entropy_correct"].value == pytest.approx(math.log(2) / 2)


@pytest.mark.bad_input
def test_what_cannot_be_measured_is_refused():
    one, two = (PromptSamples("p", ("a",) * n, ("a",) * n, (True,) * n) for n in (2, 3))
    with pytest.raises(ValueError, match="equally many"):
        measure_samples([one, two], make_measures(2))
    with pytest.raises(ValueError, match="equally many"):
        measure_samples([], make_measures(2))
    with pytest.raises(ValueError, match="repeats"):
        measure_samples([one], make_measures(2), repeats=1)
    with pytest.raises(ValueError, match="num_samples"):
        make_measures(1)
    with pytest.raises(ValueError, match="prompts"):
        draw_samples(None, None, [], 4, generator=generator())
    with pytest.raises(ValueError, match="num_samples"):
        draw_samples(None, None, ["p"], 0, generator=generator())
