"""Distances and diversity against hand computations and brute force."""

import itertools
import math
import statistics
import zlib

import pytest
import torch
from torch.testing import assert_close

from flowrl_lab import metrics


def double(values):
    return torch.tensor(values, dtype=torch.float64)


P, Q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


# --- distances -------------------------------------------------------------


def test_distances_by_hand():
    log_p, log_q = double(P).log(), double(Q).log()
    middle = [(a + b) / 2 for a, b in zip(P, Q, strict=True)]
    assert_close(metrics.kl_divergence(log_p, log_q), double(kl(P, Q)))
    assert_close(metrics.kl_divergence(log_q, log_p), double(kl(Q, P)))
    assert_close(metrics.total_variation(log_p, log_q), double(0.4))
    expected = (kl(P, middle) + kl(Q, middle)) / 2
    assert_close(metrics.js_divergence(log_p, log_q), double(expected))


@pytest.mark.parametrize(
    "distance", [metrics.kl_divergence, metrics.total_variation, metrics.js_divergence]
)
def test_distances_work_on_batches_and_are_zero_on_equals(distance):
    log_p, log_q = double(P).log(), double(Q).log()
    batch = distance(torch.stack([log_p, log_q]), torch.stack([log_q, log_q]))
    assert_close(batch, torch.stack([distance(log_p, log_q), double(0.0)]))


def test_distances_with_zeros_on_either_side():
    half, left, right = (
        double(p).log() for p in ([0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    )
    assert_close(metrics.kl_divergence(left, half), double(math.log(2)))
    assert metrics.kl_divergence(half, left).item() == math.inf
    assert_close(metrics.total_variation(left, right), double(1.0))
    assert_close(metrics.js_divergence(left, right), double(math.log(2)))
    assert_close(metrics.js_divergence(half, half), double(0.0))


def test_kl_to_a_list_that_misses_mass():
    # q lists only a quarter of what it does.
    value = metrics.kl_divergence(double([0.5, 0.5]).log(), double([0.125] * 2).log())
    assert_close(value, double(math.log(4)))


def test_kl_gradient_is_finite_with_zeros():
    logits = double([0.3, -0.2]).requires_grad_()
    log_q = torch.cat([logits.log_softmax(0), double([-math.inf])])
    value = metrics.kl_divergence(double([0.5, 0.5, 0.0]).log(), log_q)
    (grad,) = torch.autograd.grad(value, logits)
    assert_close(grad, logits.softmax(0).detach() - 0.5)


# --- pass@k ----------------------------------------------------------------


def test_pass_at_k_equals_counting_all_subsets():
    for n, c in itertools.product(range(1, 7), range(7)):
        if c > n:
            continue
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(range(n), k))
            hits = sum(any(i < c for i in subset) for subset in subsets)
            expected = hits / len(subsets)
            assert metrics.pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_is_unbiased():
    # Mean over all outcomes of n draws with accuracy a is exactly 1 - (1-a)^k.
    n, a = 8, 0.3
    for k in (1, 3, 8):
        mean = sum(
            math.comb(n, c) * a**c * (1 - a) ** (n - c) * metrics.pass_at_k(n, c, k)
            for c in range(n + 1)
        )
        assert mean == pytest.approx(metrics.exact_pass_at_k(a, k))


def test_pass_at_k_keeps_its_digits_for_many_samples():
    assert metrics.pass_at_k(100_000, 1, 1) == 1e-5
    assert metrics.pass_at_k(10_000, 3, 5_000) == pytest.approx(
        1 - (5000 * 4999 * 4998) / (10_000 * 9_999 * 9_998), abs=1e-15
    )
    assert metrics.pass_at_k(10, 8, 3) == 1.0  # two wrong ones cannot fill k = 3


def test_pass_at_k_of_several_prompts():
    counts = torch.tensor([[0, 3], [10, 1]])
    result = metrics.pass_at_k(10, counts, 4)
    expected = [[metrics.pass_at_k(10, c, 4) for c in row] for row in counts.tolist()]
    assert_close(result, double(expected))


def test_exact_pass_at_k_by_hand():
    assert metrics.exact_pass_at_k(0.25, 2) == pytest.approx(1 - 0.75**2)
    assert metrics.exact_pass_at_k(0.0, 64) == 0.0
    assert metrics.exact_pass_at_k(1.0, 1) == 1.0
    assert metrics.exact_pass_at_k(1e-18, 10) == pytest.approx(1e-17, rel=1e-12)
    batch = metrics.exact_pass_at_k(double([0.0, 0.5, 1.0]), 3)
    assert_close(batch, double([0.0, 0.875, 1.0]))


# --- counting answers ------------------------------------------------------


def test_expected_distinct_equals_the_mean_over_all_draws():
    probs = [0.5, 0.2, 0.1]  # 0.2 of the mass is not listed
    everything = [*probs, 0.2]
    expected = 0.0
    for draw in itertools.product(range(4), repeat=3):
        chance = math.prod(everything[i] for i in draw)
        expected += chance * len(set(draw) - {3})
    assert_close(metrics.expected_distinct(double(probs), 3), double(expected))


def test_distinct_solutions_counts_correct_ones_once():
    solutions = ["1+2", "2+1", "1+2", "9", "9"]
    assert metrics.distinct_solutions(solutions) == 3
    correct = [True, True, True, False, False]
    assert metrics.distinct_solutions(solutions, correct) == 2
    assert metrics.distinct_solutions([]) == 0


def test_effective_groups_counts_ideas_not_spellings():
    log_probs = double([0.1, 0.1, 0.2, 0.2, 0.4]).log()
    apart, together = torch.arange(5), torch.tensor([0, 0, 0, 1, 1])
    assert_close(
        metrics.effective_groups(log_probs, apart), metrics.effective_number(log_probs)
    )
    held = double([0.4, 0.6]).log()
    assert_close(
        metrics.effective_groups(log_probs, together), metrics.effective_number(held)
    )
    # half of the mass, and two answers of no group: only ratios count
    some = torch.tensor([0, -1, 0, 1, -1])
    held = double([0.3 / 0.5, 0.2 / 0.5]).log()
    assert_close(
        metrics.effective_groups(log_probs - math.log(2), some),
        metrics.effective_number(held),
    )


def test_accuracy_after_filter_is_enumeration():
    """Right, plausible or wrong: all outcomes of n samples, one submission each."""
    right, plausible, n = 0.2, 0.3, 3
    chances = {"right": right, "plausible": plausible, "wrong": 1 - right - plausible}
    total = 0.0
    for drawn in itertools.product(chances, repeat=n):
        passing = [kind for kind in drawn if kind != "wrong"]
        share = passing.count("right") / len(passing) if passing else 0.0
        total += share * math.prod(chances[kind] for kind in drawn)
    found = metrics.accuracy_after_filter(
        double([right + plausible, 0.0]), double([right, 0.0]), n
    )
    assert_close(found, double([total, 0.0]))


def test_effective_number_is_exp_of_entropy():
    assert_close(metrics.effective_number(double([0.25] * 4).log()), double(4.0))
    assert_close(metrics.effective_number(double([1.0, 0.0]).log()), double(1.0))
    entropy = -sum(p * math.log(p) for p in P)
    assert_close(metrics.effective_number(double(P).log()), double(math.exp(entropy)))


def test_mode_coverage_by_hand():
    groups = torch.tensor([0, 0, 1, -1, 2])
    target = double([0.2, 0.2, 0.2, 0.4, 0.0]).log()
    # mode 0 keeps 0.25 of 0.4, mode 1 keeps 0.05 of 0.2, mode 2 has no target
    policy = double([0.25, 0.0, 0.05, 0.7, 0.0]).log()

    def coverage(share):
        return metrics.mode_coverage(policy, target, groups, share=share).item()

    assert coverage(0.5) == 0.5
    assert coverage(0.2) == 1.0
    assert coverage(0.7) == 0.0


# --- texts -----------------------------------------------------------------


def test_distinct_n_by_hand():
    assert metrics.distinct_n(["abab"], 1) == 0.5
    assert metrics.distinct_n(["abab"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert metrics.distinct_n([[1, 2], [1, 2], [3]], 2) == 0.5


def test_vendi_score_counts_kinds():
    assert metrics.vendi_score(torch.eye(5)) == pytest.approx(5.0)
    assert metrics.vendi_score(torch.ones(5, 5)) == pytest.approx(1.0)
    # Two kinds, three of one and one of the other: exp(H(3/4, 1/4)).
    kinds = torch.tensor([0, 0, 0, 1])
    same = (kinds.unsqueeze(0) == kinds.unsqueeze(1)).double()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metrics.vendi_score(same) == pytest.approx(math.exp(entropy))


def test_self_bleu_of_copies_is_1_and_of_a_mixture_less():
    texts = [
        "the cat sat on the mat",
        "the cat sat on the mat",
        "no dogs ran off today",
    ]
    assert metrics.self_bleu(texts[:2]) == pytest.approx(1.0)
    assert metrics.self_bleu(texts) < 1.0


WORDS = [
    "the cat sat on the mat",
    "the cat sat on the mat",
    "the the the cat",
    "no dogs ran off today",
    "a",
    "cat",
    "cat cat cat cat cat cat cat",
    "  ",
    "the cat sat, on the mat!",
]


@pytest.mark.parametrize("tokenize", ["13a", "char"])
@pytest.mark.parametrize("count", [2, 3, 5, 7, 9])
def test_self_bleu_is_the_mean_of_each_against_the_rest(count, tokenize):
    """sacrebleu's own sentence BLEU is the oracle."""
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = WORDS[-count:]
    scores = [
        sacrebleu.sentence_bleu(
            text, [*texts[:i], *texts[i + 1 :]], tokenize=tokenize
        ).score
        for i, text in enumerate(texts)
    ]
    ours = metrics.self_bleu(texts, tokenize=tokenize)
    assert ours == pytest.approx(statistics.fmean(scores) / 100, abs=1e-12)


def test_self_bleu_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("flowrl_lab.metrics.texts.importlib.import_module", missing)
    with pytest.raises(ImportError, match=r"Fix: pip install .*metrics"):
        metrics.self_bleu(["a", "b"])


def test_compression_ratio_by_hand_and_in_order():
    texts = ["4+8*2", "6*4"]
    packed = len(zlib.compress(b"4+8*2\n6*4", 9))
    assert metrics.compression_ratio(texts) == 9 / packed
    assert metrics.compression_ratio(["6*4"] * 50) > metrics.compression_ratio(
        [f"{i}*{i}" for i in range(50)]
    )
    assert metrics.compression_ratio([""]) > 0


def test_ngram_similarity_by_hand():
    # a: a, b, ab;  b: a, b, ba (counts 1);  c shares nothing
    kernel = metrics.ngram_similarity(["ab", "ba", "cc", "", ""])
    assert_close(kernel[0, 1], double(2 / 3))
    assert_close(kernel.diagonal(), torch.ones(5).double())
    assert_close(kernel[2, :2], double([0.0, 0.0]))
    assert_close(kernel[3, 4], double(1.0))  # two empty texts are alike
    # cc: c twice, cc once; ccc: c three times, cc twice
    pair = metrics.ngram_similarity([["c"] * 2, ["c"] * 3])
    assert_close(pair[0, 1], double(8 / math.sqrt(5 * 13)))
    assert metrics.vendi_score(metrics.ngram_similarity(["ab"] * 4)) == pytest.approx(1)


# --- samples and what a perfect sampler would give --------------------------


def test_avg_at_k_is_the_share_of_right_ones():
    assert metrics.avg_at_k([True, False, False, True]) == 0.5
    assert metrics.avg_at_k([True]) == metrics.pass_at_k(1, 1, 1)
    with pytest.raises(ValueError, match="at least 1 marks"):
        metrics.avg_at_k([])


def test_answer_entropy_by_hand():
    sample = ["a", "a", "b", "c"]
    plain = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert metrics.answer_entropy(sample) == pytest.approx(plain)
    corrected = metrics.answer_entropy(sample, bias_corrected=True)
    assert corrected == pytest.approx(plain + 2 / 8)
    assert metrics.answer_entropy(["a"] * 5, bias_corrected=True) == 0.0


@pytest.mark.parametrize("n", [1, 2, 4])
def test_expected_answer_entropy_is_the_mean_over_all_draws(n):
    probs = [0.5, 0.3, 0.15, 0.05]
    mean = sum(
        math.prod(probs[i] for i in draw) * metrics.answer_entropy(draw)
        for draw in itertools.product(range(4), repeat=n)
    )
    assert_close(metrics.expected_answer_entropy(double(probs), n), double(mean))


def test_expected_answer_entropy_is_too_low_and_gets_there():
    log_p = double([0.1] * 10).log()
    truth = metrics.effective_number(log_p).log()
    few, many = (metrics.expected_answer_entropy(log_p.exp(), n) for n in (5, 5000))
    assert few < math.log(5) and truth - few > 0.7
    # Miller and Madow: the bias is (N - 1) / 2n to first order
    assert_close(truth - many, double(9 / 10_000), rtol=1e-2, atol=0.0)
    batch = torch.stack([log_p.exp(), torch.eye(10).double()[0]])
    assert_close(
        metrics.expected_answer_entropy(batch, 5), torch.stack([few, double(0.0)])
    )


def test_expected_coverage_is_a_share():
    probs = double([[0.5, 0.5], [0.9, 0.1]])
    expected = double([1 - 0.25, (1 - 0.01 + 1 - 0.81) / 2])
    assert_close(metrics.expected_coverage(probs, 2), expected)


# --- judges -----------------------------------------------------------------


def test_a_judge_sees_the_first_300_characters_only():
    long = ["x" * 300 + tail for tail in "abcd"]
    judge = metrics.CountingJudge()
    assert isinstance(judge, metrics.Judge)
    assert metrics.judge_diversity(judge, {"p": long}) == {"p": 1.0}
    seen_whole = metrics.judge_diversity(judge, {"p": long}, max_characters=None)
    assert seen_whole == {"p": 5.0}


def test_the_counting_judge_counts():
    ratings = metrics.judge_diversity(
        metrics.CountingJudge(),
        {"same": ["6 * 4", "6*4"], "half": ["A", "a", "b", "c", "c"]},
    )
    assert ratings == {"same": 1.0, "half": 3.0}


def test_a_text_judge_asks_and_reads_the_last_rating():
    asked = []

    def complete(text):
        asked.append(text)
        return "Rating: 2? No, two ways in three.\n**Rating: 3.5**"

    judge = metrics.TextJudge(complete)
    assert metrics.judge_diversity(judge, {"make 24": ["6*4", "4*6"]}) == {
        "make 24": 3.5
    }
    assert all(part in asked[0] for part in ("make 24", "6*4", "Response 2:\n4*6"))


@pytest.mark.bad_input
@pytest.mark.parametrize("reply", ["", "I rate it highly", "Rating: 7", "Rating: 45"])
def test_a_text_judge_refuses_what_is_no_rating(reply):
    judge = metrics.TextJudge(lambda _text: reply)
    with pytest.raises(ValueError, match="expected 'Rating: N'"):
        metrics.judge_diversity(judge, {"p": ["a", "b"]})


# --- calibration and rankings -------------------------------------------------


def test_calibration_of_log_z_by_hand():
    exact = double([1.0, 2.0, 3.0, 4.0])
    line = metrics.calibrate_log_z(0.5 * exact + 1, exact)
    assert (line.slope, line.intercept) == pytest.approx((0.5, 1.0))
    assert line.correlation == pytest.approx(1.0)
    assert line.bias == pytest.approx(-0.25) and line.count == 4
    assert line.rmse == pytest.approx(math.sqrt((0.25 + 0 + 0.25 + 1) / 4))
    flat = metrics.calibrate_log_z(torch.full((4,), 2.5).double(), exact)
    assert flat.slope == pytest.approx(0.0) and math.isnan(flat.correlation)
    assert math.isnan(metrics.calibrate_log_z(exact, torch.ones(4).double()).slope)


def test_a_log_z_states_the_pass_rate_it_was_made_of():
    rate = double([0.0, 1e-6, 0.3, 1.0])
    for scale in (0.5, 8.0, 500.0):
        log_z = torch.logaddexp((1 - rate).log(), rate.log() + scale)
        stated = metrics.stated_pass_rate(log_z, reward_scale=scale)
        assert_close(stated, rate)
    assert metrics.stated_pass_rate(double(9.0), reward_scale=8.0) == 1.0
    assert metrics.stated_pass_rate(double(-2.0), reward_scale=8.0) == 0.0


def test_reliability_by_hand():
    stated, observed = double([0.1, 0.15, 0.55, 1.0]), double([0.0, 0.5, 0.5, 1.0])
    low, middle, high = metrics.reliability(stated, observed)
    assert (low.low, low.high, low.count) == (0.0, 0.2, 2)
    assert (low.stated, low.observed) == pytest.approx((0.125, 0.25))
    assert (middle.low, middle.observed) == (0.4, 0.5)
    assert (high.high, high.stated) == (1.0, 1.0)
    error = metrics.calibration_error((low, middle, high))
    assert error == pytest.approx((2 * 0.125 + 0.05) / 4)


def test_rank_correlation_by_hand():
    x = double([1.0, 2.0, 3.0, 4.0])
    assert metrics.rank_correlation(x, x.exp()) == pytest.approx(1.0)
    assert metrics.rank_correlation(x, -x) == pytest.approx(-1.0)
    # ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: 4.5 / sqrt(4.5 * 5)
    tied = metrics.rank_correlation(double([1.0, 2.0, 2.0, 9.0]), x)
    assert tied == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(metrics.rank_correlation(x, torch.ones(4).double()))


# --- importance weights ----------------------------------------------------


def test_effective_sample_size_by_hand():
    weights = double([[1.0, 1.0, 1.0, 1.0], [4.0, 2.0, 1.0, 1.0]])
    result = metrics.effective_sample_size(weights.log())
    assert_close(result, double([4.0, 64.0 / 22.0]))


def test_effective_sample_size_is_between_one_and_n_and_free_of_scale():
    log_weights = double([0.0, -1.0, 2.0, 0.3])
    plain = metrics.effective_sample_size(log_weights)
    assert 1 < plain < 4
    assert_close(metrics.effective_sample_size(log_weights + 5000.0), plain)
    alone = metrics.effective_sample_size(double([0.0, 800.0, 0.0]))
    assert_close(alone, double(1.0))


@pytest.mark.bad_input
@pytest.mark.parametrize("bad", [[], [float("nan"), 0.0], [float("-inf")]])
def test_effective_sample_size_refuses_what_is_no_weight(bad):
    with pytest.raises(ValueError, match="log_weights"):
        metrics.effective_sample_size(double(bad))
    with pytest.raises(ValueError, match="log_weights"):
        metrics.effective_sample_size(double(0.0))
