"""What a run is: every setting, checked before any work starts."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from typing import Any

__all__ = ["CONFIG_VERSION", "ExperimentConfig"]

CONFIG_VERSION = 1

# The registries' names stand here once more (a test holds them together): a config is
# read where neither tasks nor algorithms need to load.
CHOICES = {
    "task": (
        *("landscape", "strings", "make_number", "programs"),
        *("sums", "sums_6", "sums_21", "sums_57", "open_sets"),
        *("number_facts", "formulas", "required_operator", "countdown", "arithmetic"),
        *("gsm_symbolic", "gsm8k", "human_eval"),
    ),
    "algorithm": (
        *("reinforce_pp", "ppo", "grpo", "dapo", "pass_at_k"),
        *("flowrl", "vargrad", "kl_reinforce"),
    ),
    "policy": ("auto", "tabular", "tiny_lm", "hf_lm"),
    "lr_schedule": ("constant", "linear", "cosine"),
    "reward_form": ("raw", "group_normalized"),
    "importance": ("none", "clip", "raw", "max10"),
    "log_z": ("learned", "attached", "vargrad", "constant", "frozen", "random"),
    "log_z_start": ("zero", "batch"),
    "log_z_features": ("last", "mean"),
    "dtype": ("auto", "float32", "float16", "bfloat16"),
    "prompt_format": ("plain", "chat"),
    "eval_split": ("heldout", "validation", "test"),
    "on_bad_update": ("stop", "skip"),
}
WHOLE = {
    *("steps", "prompts_per_step", "num_generations", "updates_per_batch"),
    *("lora_rank", "eval_every", "eval_prompts", "pass_k"),
    *("seed", "micro_batch", "max_skips"),
}
POSITIVE = {
    *("steps", "prompts_per_step", "num_generations", "updates_per_batch"),
    *("learning_rate", "log_z_learning_rate", "value_learning_rate", "max_grad_norm"),
    *("temperature", "reward_scale", "lora_rank", "lora_alpha", "eval_every"),
    *("eval_prompts", "pass_k"),
}
NOT_NEGATIVE = {
    *("seed", "clip_low", "clip_high", "kl_coef", "entropy_coef", "micro_batch"),
    *("max_residual", "max_skips"),
}
GROUP_ALGORITHMS = ("grpo", "dapo", "pass_at_k", "vargrad", "kl_reinforce")
# Settings that compare the completions of one prompt.
GROUPED = {"algorithm": GROUP_ALGORITHMS, "log_z": ("vargrad",)}
# By the annotation of a field; numbers have their own check.
KINDS = {"str": (str, "text"), "bool": (bool, "True or False")}


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """All settings of one run.  ``replace`` makes a changed copy.

    Attributes:
        task: key in ``flowrl_lab.tasks.TASKS``, a real set of
            ``tasks.real.TEXT_TASKS``, or ``"package.module:name"`` of your own.
        task_options: keyword arguments of the task.
        policy: "tabular", "tiny_lm", "hf_lm" (a model of your choice, for tasks in
            plain text), or "auto" (what suits the task).
        model: of "hf_lm": "smollm2-135m", a folder, or a name on the hub.
        dtype: of its frozen weights; "auto" is float32 on a CPU, half on a GPU.
        prompt_format: "plain", or "chat" (the model's chat template).
        algorithm: key in ``flowrl_lab.training.algorithms.ALGORITHMS``.
        name: for legends; empty means the algorithm's name.
        seed: of prompts, sampling and initial weights.
        steps: rollouts; the sampling budget is steps x prompts x generations.
        prompts_per_step: P, the prompts of a step.
        num_generations: G, the group size.
        updates_per_batch: gradient steps on each rollout.
        temperature: of sampling and of all log-probs.
        learning_rate: of the policy (AdamW).
        lr_schedule: "constant", "linear" or "cosine" (both to 0); for all groups.
        log_z_learning_rate: of Z_φ.
        value_learning_rate: of PPO's critic.
        max_grad_norm: the policy's gradient is scaled down to this norm.
        reward_scale: the paper's β, of the flow losses; nats per unit of reward.
        reward_form: "raw", or "group_normalized" (the paper's r̂).
        length_normalize: token means instead of sums in the residual (the paper).
        importance: "none", "clip", "raw" or "max10"; see ``flowrl_loss``.
        log_z: where FlowRL's log Z comes from.  "learned": Z_φ on the frozen
            reference's features.  "attached": Z_φ on the policy's own, its gradient
            in the backbone (the authors' code).  "vargrad": the batch's best.
            "constant": ``log_z_value``.  "frozen": a draw of N(log_z_value, 1) for
            each prompt, once.  "random": such a draw anew in every step.
        log_z_value: of a log Z that nothing learns, nats.
        log_z_start: what a learned log Z says at first: "zero", or "batch", the
            estimate log mean exp(βr) of the first batch, which is drawn from π_ref.
        log_z_features: prompt features of Z_φ: "last" prompt token, or "mean".
        clip_low: lower clip ε of importance ratios.
        clip_high: upper clip ε.
        kl_coef: weight of the KL penalty to the reference (all but the flow losses,
            which have β for it).
        entropy_coef: weight of an entropy bonus, any algorithm.
        pass_k: k of the algorithm "pass_at_k".
        lora_rank: rank of the LoRA adapter.
        lora_alpha: its scale.
        eval_every: steps between exact evaluations.
        eval_prompts: prompts of that split to evaluate on (fewer if there are fewer).
        eval_split: which prompts judge the run: "heldout", or one half of them,
            "validation" (to choose settings on) or "test" (to report).
        watch_prompt: whose distribution the records carry; empty takes the first.
        device: "cpu", "cuda", "mps", or "auto".
        micro_batch: completions in one pass at most; 0 is all at once. It changes
            what memory is needed, not what is learned.
        on_bad_update: when a loss or gradient is not finite, or a residual is too
            large: "stop" the run, or "skip" that update and go on.
        max_residual: largest residual of an update, nats; 0 is no limit.
        max_skips: updates that may be skipped in a row.
    """

    task: str = "landscape"
    task_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    policy: str = "auto"
    algorithm: str = "flowrl"
    name: str = ""
    seed: int = 0
    steps: int = 200
    prompts_per_step: int = 16
    num_generations: int = 16
    updates_per_batch: int = 1
    temperature: float = 1.0
    learning_rate: float = 1e-3
    lr_schedule: str = "constant"
    log_z_learning_rate: float = 1e-2
    value_learning_rate: float = 1e-2
    max_grad_norm: float = 1.0
    reward_scale: float = 15.0
    reward_form: str = "raw"
    length_normalize: bool = False
    importance: str = "clip"
    log_z: str = "learned"
    log_z_value: float = 0.0
    log_z_start: str = "zero"
    log_z_features: str = "last"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    pass_k: int = 4
    lora_rank: int = 16
    lora_alpha: float = 32.0
    eval_every: int = 10
    eval_prompts: int = 32
    eval_split: str = "heldout"
    watch_prompt: str = ""
    device: str = "cpu"
    model: str = "smollm2-135m"
    dtype: str = "auto"
    prompt_format: str = "plain"
    micro_batch: int = 0
    on_bad_update: str = "stop"
    max_residual: float = 0.0
    max_skips: int = 5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type in KINDS:
                _check_kind(field.name, getattr(self, field.name), field.type)
        # A copy in JSON's types: what is saved and loaded again then compares equal.
        options = _plain_options(self.task_options)
        object.__setattr__(self, "task_options", options)
        for field, choices in CHOICES.items():
            # "package.module:name" is a task of your own
            if field != "task" or ":" not in str(self.task):
                _check_known(field, getattr(self, field), choices)
        for field in dataclasses.fields(self):
            if field.name in POSITIVE | NOT_NEGATIVE:
                value, name = getattr(self, field.name), field.name
                _check_number(name, value, name in POSITIVE, name in WHOLE)
        _check_finite_number("log_z_value", self.log_z_value)
        if any(getattr(self, field) in values for field, values in GROUPED.items()):
            self._check_group()
        if self.algorithm == "pass_at_k" and self.pass_k > self.num_generations:
            raise ValueError(
                f"pass_k is {self.pass_k} with num_generations {self.num_generations}; "
                "the best of k is taken inside a group. Fix: lower pass_k."
            )
        if self.algorithm == "kl_reinforce" and self.updates_per_batch > 1:
            raise ValueError(
                f"updates_per_batch is {self.updates_per_batch}; kl_reinforce has no "
                "importance weight, so only its first update on a batch is right. "
                "Fix: set updates_per_batch=1."
            )

    def _check_group(self) -> None:
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations is {self.num_generations}; {self.algorithm} compares "
                "completions of one prompt. Fix: use at least 2."
            )

    @property
    def run_name(self) -> str:
        """The name for legends and tables."""
        return self.name or self.algorithm

    def replace(self, **changes: Any) -> ExperimentConfig:
        """A copy with some fields changed, checked again."""
        _check_fields(changes)
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The config as JSON text; ``from_json`` gives an equal config back."""
        return json.dumps(
            {"config_version": CONFIG_VERSION, **dataclasses.asdict(self)}, indent=2
        )

    @classmethod
    def from_json(cls, text: str) -> ExperimentConfig:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: not JSON, another version, or unknown fields.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"the config is not JSON ({error}). Fix: restore config.json, or start "
                "a new run."
            ) from None
        version = (
            fields.pop("config_version", None) if isinstance(fields, dict) else None
        )
        if version != CONFIG_VERSION:
            raise ValueError(
                f"the config has version {version!r}; this flowrl_lab reads version "
                f"{CONFIG_VERSION}. Fix: use the flowrl_lab that wrote it, or start a "
                "new run."
            )
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = fields.keys() - set(known)
        if any(difflib.get_close_matches(name, known, n=1) for name in unknown):
            _check_fields(fields)  # a slip: say what was meant
        if unknown:
            raise ValueError(
                f"the config has {sorted(unknown)}, which this flowrl_lab does not "
                "know; a newer one has written it, or it was changed by hand. Fix: pip "
                "install --upgrade flowrl-lab, or take that out."
            )
        return cls(**fields)


def _check_fields(fields: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(ExperimentConfig)]
    for name in fields:
        _check_known("setting", name, known)


def _check_kind(field: str, value: Any, kind: str) -> None:
    right_type, meaning = KINDS[kind]
    if not isinstance(value, right_type):
        raise ValueError(
            f"{field} is {value!r}; expected {meaning}. Fix: change {field}."
        )


def _plain_options(options: Any) -> dict[str, Any]:
    problem = f"it is a {type(options).__name__}"
    if isinstance(options, dict):
        try:
            return json.loads(json.dumps(options))
        except (TypeError, ValueError) as error:
            problem = str(error)
    raise ValueError(
        f"task_options is {options!r}; expected a dict of numbers, text and lists "
        f"({problem}). Fix: turn tensors and arrays into lists with .tolist()."
    )


def _check_known(field: str, value: Any, choices) -> None:
    if value in choices:
        return
    close = difflib.get_close_matches(str(value), list(choices), n=1)
    hint = (
        f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(choices)}."
    )
    raise ValueError(f"{field} is {value!r}, which is not known. Fix: {hint}")


def _check_finite_number(field: str, value: Any, whole: bool = False) -> None:
    kind = "whole number" if whole else "finite number"
    right_type = isinstance(value, int if whole else (int, float))
    if not right_type or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(
            f"{field} is {value!r}; expected a {kind}. Fix: change {field}."
        )


def _check_number(field: str, value: Any, positive: bool, whole: bool) -> None:
    _check_finite_number(field, value, whole)
    kind = "whole number" if whole else "finite number"
    if value < 0 or (positive and value == 0):
        bound = "above 0" if positive else "of at least 0"
        raise ValueError(
            f"{field} is {value!r}; expected a {kind} {bound}. Fix: change {field}."
        )
