"""Evaluate a saved run: exact figures, sampled figures, and what cannot be beaten."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flowrl_lab._validation import bad_input, check_count, check_number
from flowrl_lab.evaluation import Referee
from flowrl_lab.exact import mean_report
from flowrl_lab.measuring.noise_floors import (
    SampledFigure,
    make_measures,
    measure_samples,
)
from flowrl_lab.measuring.samples import draw_samples, needs_words
from flowrl_lab.measuring.tables import Metric
from flowrl_lab.metrics import (
    Judge,
    LogZCalibration,
    ReliabilityBin,
    calibrate_log_z,
    effective_number,
    expected_coverage,
    reliability,
    stated_pass_rate,
)
from flowrl_lab.training.checkpoints import read_checkpoint
from flowrl_lab.training.run import Run
from flowrl_lab.types import AnswerSet, ExactReport

__all__ = [
    "Evaluation",
    "ExactFigure",
    "evaluate_run",
    "load_for_evaluation",
]


@dataclass(frozen=True)
class ExactFigure(Metric):
    """An exact figure of the policy (mean over prompts), and of the target itself."""

    value: float
    perfect: float


@dataclass(frozen=True)
class Evaluation:
    """What is known about one run.

    Attributes:
        facts: run, task, step, prompts, samples, temperature and so on.
        exact: exact figures; empty where the task cannot list its answers.
        sampled: figures of samples, beside their noise floors where the target is
            known, else beside those of the untrained policy.
        log_z: learned against exact log Z over the prompts; None where the run
            learns none, or one that is not the referee's.
        pass_rates: pass rates of the reference as log Z states them, against the
            exact ones; empty without ``log_z`` or for rewards other than 0 and 1.
    """

    facts: dict
    exact: tuple[ExactFigure, ...]
    sampled: tuple[SampledFigure, ...]
    log_z: LogZCalibration | None
    pass_rates: tuple[ReliabilityBin, ...]


def load_for_evaluation(folder: str | Path) -> Run:
    """The run saved in ``folder``, finished or not, to be looked at.

    Raises:
        ValueError: no folder, no checkpoint, a damaged one; the message names the
            runs that lie below a comparison's folder.
    """
    folder = Path(folder)
    checkpoint = folder / "checkpoint.pt"
    if not checkpoint.is_file():
        below = sorted(path.parent for path in folder.glob("**/checkpoint.pt"))
        what = "is a file" if folder.is_file() else "holds no checkpoint.pt"
        if not folder.exists():
            what = "does not exist"
        fix = (
            f"name one of the {len(below)} runs below it, such as {below[0]}"
            if below
            else "name the folder that `train --out` wrote"
        )
        raise bad_input("folder", f"{folder} {what}", "the folder of a run", fix)
    # A loss of the run's own is needed to train, and not to be judged.
    own_loss = read_checkpoint(checkpoint).get("flowrl_loss", "")
    return Run.load(folder, flowrl_loss=_no_training if own_loss else None)


def _no_training(*_tensors, **_settings) -> Tensor:
    raise ValueError(
        "this run was loaded to be evaluated; expected no training. Fix: load it with "
        "Run.load and its own flowrl_loss."
    )


def evaluate_run(
    run: Run,
    *,
    num_prompts: int | None = None,
    num_samples: int = 64,
    temperature: float | None = None,
    repeats: int = 20,
    seed: int = 0,
    judge: Judge | None = None,
    on_stage: Callable[[str], None] = lambda _stage: None,
) -> Evaluation:
    """Judge a run on held-out prompts.

    Args:
        run: trained, or stopped half-way.
        num_prompts: how many of them, from the first on; None takes as many as the
            run itself was judged on.
        num_samples: samples of each prompt.
        temperature: of policy and reference alike; None takes the run's own.
        repeats: draws of a perfect sampler, for the noise floors.
        seed: of all draws.
        judge: rates the samples' diversity, if given.
        on_stage: is told what comes next.

    Raises:
        ValueError: numbers out of range, more prompts than there are.
    """
    prompts = _pick_prompts(run, num_prompts)
    temperature = run.config.temperature if temperature is None else temperature
    check_number("temperature", temperature, above=True)
    check_count("num_samples", num_samples, least=2)
    check_count("repeats", repeats, least=2)
    facts = _facts(run, prompts, num_samples, temperature, repeats, seed)
    referee = None
    exact, log_z, pass_rates = (), None, ()
    if run.task.has_referee:
        on_stage(f"exact figures of {len(prompts)} prompts")
        scales = {"reward_scale": run.config.reward_scale, "temperature": temperature}
        referee = Referee(run.policy, run.task, prompts, **scales)
        reports = referee.reports(
            run.textbook_log_z, log_z_features=run.config.log_z_features
        )
        log_z, pass_rates = _calibrate(referee, reports)
        exact = tuple(_exact_figures(referee, reports, num_samples))
    beside = "untrained ones" if referee is None else f"perfect ones {repeats} times"
    on_stage(f"{num_samples} samples of each, and as many {beside}")
    sampled = tuple(_sampled_figures(run, prompts, referee, facts, judge))
    return Evaluation(facts, exact, sampled, log_z, pass_rates)


def _pick_prompts(run: Run, wanted: int | None) -> tuple[str, ...]:
    prompts = run.task.prompts("heldout")
    if wanted is None:
        return prompts[: run.config.eval_prompts]
    check_count("num_prompts", wanted)
    if wanted > len(prompts):
        raise bad_input(
            "num_prompts",
            f"is {wanted}, but task {run.task.name!r} holds out {len(prompts)}",
            f"1 to {len(prompts)}",
            "ask for fewer prompts, and for more samples of each",
        )
    return prompts[:wanted]


def _facts(run, prompts, num_samples, temperature, repeats, seed) -> dict:
    config = run.config
    return {
        "run": config.run_name,
        "algorithm": config.algorithm,
        "task": config.task,
        "task_options": config.task_options,
        "seed_of_run": config.seed,
        "step": run.step,
        "steps": config.steps,
        "finished": run.step >= config.steps,
        "prompts": len(prompts),
        "samples": num_samples,
        "temperature": temperature,
        "repeats": repeats,
        "seed": seed,
        "device": str(run.policy.device),
    }


# ------------------------------------------------------------------------- exact

_FIELDS = (
    ("effective_answers", "effective right answers", "↑"),
    ("kl_policy_target", "KL(π‖p*), nats", "↓"),
    ("kl_target_policy", "KL(p*‖π), nats", "↓"),
    ("total_variation", "total variation", "↓"),
    ("modes_covered", "modes covered", "↑"),
    ("lost_prompts", "lost prompts", "↓"),
)


def _exact_figures(
    referee: Referee, reports: dict[str, ExactReport], num_samples: int
) -> list[ExactFigure]:
    mean = mean_report(list(reports.values()))
    best = mean_report(list(referee.perfect_reports().values()))
    figures = [ExactFigure("accuracy", "accuracy", "↑", mean.accuracy, best.accuracy)]
    for k, value in mean.pass_at_k.items():
        if k > 1:
            figures.append(
                ExactFigure(f"pass@{k}", f"pass@{k}", "↑", value, best.pass_at_k[k])
            )
    policy, target = referee.log_probs(), referee.targets()
    heading = f"share of the right answers found in {num_samples}"
    extra = (
        ("coverage", heading, lambda p, a: _coverage(p, a, num_samples)),
        ("effective_ideas", "effective right ideas", _effective_ideas),
    )
    for key, name, measure in extra:
        value, perfect = (
            statistics.fmean(
                measure(log_probs[text], answers)
                for text, answers in referee.answers.items()
            )
            for log_probs in (policy, target)
        )
        figures.append(ExactFigure(key, name, "↑", value, perfect))
    for field, name, better in _FIELDS:
        values = getattr(mean, field), getattr(best, field)
        figures.append(ExactFigure(field, name, better, *values))
    return figures


def _coverage(log_probs: Tensor, answers: AnswerSet, num_samples: int) -> float:
    probs = log_probs.exp()[answers.correct].clamp(max=1.0)
    return expected_coverage(probs, num_samples).item()


def _effective_ideas(log_probs: Tensor, answers: AnswerSet) -> float:
    """The effective number of groups among the right answers that have one."""
    counted = answers.correct & (answers.groups >= 0)
    if not bool(counted.any()):
        return float("nan")
    groups, probs = answers.groups[counted].long(), log_probs[counted].exp()
    held = probs.new_zeros(int(groups.max()) + 1).index_add(0, groups, probs)
    return effective_number(held.log().log_softmax(dim=0)).item()


def _calibrate(
    referee: Referee, reports: dict[str, ExactReport]
) -> tuple[LogZCalibration | None, tuple[ReliabilityBin, ...]]:
    learned, exact = (
        torch.tensor([getattr(r, name) for r in reports.values()], dtype=torch.float64)
        for name in ("log_z_learned", "log_z_exact")
    )
    if bool(torch.isnan(learned).any()):
        return None, ()
    line = calibrate_log_z(learned, exact)
    binary = all(
        bool(torch.equal(a.rewards, a.correct.to(a.rewards.dtype)))
        for a in referee.answers.values()
    )
    if not binary:
        return line, ()
    stated = stated_pass_rate(learned, reward_scale=referee.reward_scale)
    reference = referee.log_probs(reference=True)
    observed = torch.stack(
        [reference[t].exp()[a.correct].sum() for t, a in referee.answers.items()]
    )
    return line, reliability(stated, observed.clamp(max=1.0))


# ----------------------------------------------------------------------- sampled


def _sampled_figures(
    run: Run,
    prompts: Sequence[str],
    referee: Referee | None,
    facts: dict,
    judge: Judge | None,
) -> Sequence[SampledFigure]:
    seed = facts["seed"]

    def draw(policy):
        generator = torch.Generator(policy.device).manual_seed(seed)
        how = {"temperature": facts["temperature"], "generator": generator}
        return draw_samples(policy, run.task, prompts, facts["samples"], **how)

    samples = draw(run.policy)
    answers = [] if referee is None else list(referee.answers.values())
    measures = make_measures(
        facts["samples"],
        words=needs_words(samples),
        texts=run.task.max_completion_tokens > 1,
        ideas=any(bool((listed.groups >= 0).any()) for listed in answers),
        judge=judge,
    )
    if referee is None:
        before = measure_samples(draw(run.untrained_policy()), measures)
        return [
            replace(figure, untrained=first.value, untrained_error=first.error)
            for figure, first in zip(
                measure_samples(samples, measures), before, strict=True
            )
        ]
    return measure_samples(
        samples,
        measures,
        answers=answers,
        log_probs=list(referee.log_probs().values()),
        targets=list(referee.targets().values()),
        repeats=facts["repeats"],
        generator=torch.Generator().manual_seed(seed),
    )
