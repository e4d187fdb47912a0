"""Measures: distances, right and different answers, texts, judges, calibration.

========================  ========================================================
module                    holds
========================  ========================================================
``metrics.distributions``  exact, from log-probs: KL, TV, JSD, effective number
``metrics.answers``        pass@k, Avg@k, distinct answers, their entropy; from samples
                           and, as a noise floor, in exact expectation
``metrics.groups``         what a training batch says of its groups
``metrics.texts``          distinct-n, self-BLEU, compression ratio, Vendi
``metrics.judging``        an LLM judge as a plug-in
``metrics.calibration``    learned against exact log Z, stated pass rates, rankings
========================  ========================================================

All names are found here: ``flowrl_lab.metrics.pass_at_k``.
"""

from flowrl_lab.metrics._checks import SUM_TOLERANCE
from flowrl_lab.metrics.answers import (
    accuracy_after_filter,
    answer_entropy,
    avg_at_k,
    distinct_solutions,
    exact_pass_at_k,
    expected_answer_entropy,
    expected_coverage,
    expected_distinct,
    pass_at_k,
)
from flowrl_lab.metrics.calibration import (
    LogZCalibration,
    ReliabilityBin,
    calibrate_log_z,
    calibration_error,
    rank_correlation,
    reliability,
    stated_pass_rate,
)
from flowrl_lab.metrics.distributions import (
    effective_groups,
    effective_number,
    effective_sample_size,
    js_divergence,
    kl_divergence,
    mode_coverage,
    total_variation,
)
from flowrl_lab.metrics.groups import (
    GROUP_MEASURES,
    GROUP_PASS_AT,
)
from flowrl_lab.metrics.judging import (
    CountingJudge,
    Judge,
    TextJudge,
    judge_diversity,
)
from flowrl_lab.metrics.texts import (
    compression_ratio,
    distinct_n,
    ngram_similarity,
    self_bleu,
    vendi_score,
)

__all__ = [
    "GROUP_MEASURES",
    "GROUP_PASS_AT",
    "SUM_TOLERANCE",
    "CountingJudge",
    "Judge",
    "LogZCalibration",
    "ReliabilityBin",
    "TextJudge",
    "accuracy_after_filter",
    "answer_entropy",
    "avg_at_k",
    "calibrate_log_z",
    "calibration_error",
    "compression_ratio",
    "distinct_n",
    "distinct_solutions",
    "effective_groups",
    "effective_number",
    "effective_sample_size",
    "exact_pass_at_k",
    "expected_answer_entropy",
    "expected_coverage",
    "expected_distinct",
    "js_divergence",
    "judge_diversity",
    "kl_divergence",
    "mode_coverage",
    "ngram_similarity",
    "pass_at_k",
    "rank_correlation",
    "reliability",
    "self_bleu",
    "stated_pass_rate",
    "total_variation",
    "vendi_score",
]
