"""The settings of ``FlowRLTrainer``: TRL's, FlowRL's, and what cannot be had.

TRL's ``GRPOConfig`` has settings that belong to GRPO's loss alone.  One that is
changed here would be ignored in silence, so each is refused by name, with the
reason and what to use instead.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowrl_lab._validation import bad_input, check_choice, check_number
from flowrl_lab.integrations import TRL_VERSIONS, require
from flowrl_lab.losses import IMPORTANCE_MODES
from flowrl_lab.training.config import ExperimentConfig

require("trl", "trl", TRL_VERSIONS)

from trl import GRPOConfig  # noqa: E402 - after the check, whose message is clearer

__all__ = ["GRPO_ONLY", "FlowRLConfig"]

_OTHER_LOSS = "FlowRL has one loss, flowrl_loss"
_SCALE = "FlowRL's own rewards: set reward_form and reward_scale"
_TARGET = "the target π_ref exp(βr)/Z has no such term"
# setting of GRPOConfig -> why FlowRL cannot honour a value other than its default
GRPO_ONLY = {
    "beta": "FlowRL has no KL penalty: its reference is part of the residual",
    "loss_type": _OTHER_LOSS,
    "delta": _OTHER_LOSS + "; its clip is epsilon and epsilon_high",
    "importance_sampling_level": "FlowRL weighs whole sequences: set importance",
    "scale_rewards": _SCALE,
    "multi_objective_aggregation": _SCALE + ", of the weighted sum of all rewards",
    "top_entropy_quantile": "the residual of a sequence needs all of its tokens",
    "mask_truncated_completions": "a sequence without tokens has no residual",
    "off_policy_mask_threshold": "dropping rows moves the optimum: set importance",
    "entropy_coef": _TARGET,
    "use_adaptive_entropy": _TARGET,
    "use_bias_correction_kl": "FlowRL has no KL penalty",
    "sync_ref_model": "a moving reference is a moving target",
    "sapo_temperature_neg": _OTHER_LOSS,
    "sapo_temperature_pos": _OTHER_LOSS,
    "vespo_k_pos": _OTHER_LOSS,
    "vespo_k_neg": _OTHER_LOSS,
    "vespo_lambda_pos": _OTHER_LOSS,
    "vespo_lambda_neg": _OTHER_LOSS,
    "fp16": "Z needs the range of bf16 or float32; a scaled loss would scale Z too",
}
# Sampling from a part of the distribution: allowed, but the log-probs differ from it.
_TRUNCATED_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty")
_SCHEDULES = {"constant": "constant", "linear": "linear", "cosine": "cosine"}


# transformers' name for it; newer ones warn of the old name.
_CHECKPOINTING = "activation_checkpointing"
if _CHECKPOINTING not in {known.name for known in dataclasses.fields(GRPOConfig)}:
    _CHECKPOINTING = "gradient_checkpointing"

_SAME = ("seed", "num_generations", "temperature", "learning_rate", "max_grad_norm")
_SAME += ("reward_scale", "reward_form", "length_normalize", "importance")
_SAME += ("log_z_learning_rate", "log_z_features")


def _setting(default: Any, words: str) -> Any:
    return field(default=default, metadata={"help": words})


@dataclass
class FlowRLConfig(GRPOConfig):
    """TRL's training arguments with FlowRL's own; the names are this library's.

    ``epsilon`` and ``epsilon_high`` are the clip of ``importance="clip"``,
    ``num_iterations`` the updates per batch, ``temperature`` is of sampling and of
    all log-probs.  vLLM, DeepSpeed, accelerate, saving and logging are TRL's.

    Raises:
        ValueError: a setting of GRPO's loss that FlowRL cannot honour, groups that
            do not share out over the batch, a number out of range.
    """

    reward_scale: float = _setting(15.0, "the paper's β, nats per unit of reward")
    reward_form: str = _setting("raw", "'raw', or 'group_normalized' (the paper)")
    length_normalize: bool = _setting(False, "token means (the paper), or sums")
    importance: str = _setting("clip", f"one of {IMPORTANCE_MODES}")
    log_z_learning_rate: float = _setting(1e-2, "of Z_φ; it follows the schedule")
    log_z_features: str = _setting("last", "what Z_φ reads: 'last' token, or 'mean'")

    def __post_init__(self) -> None:
        check_number("reward_scale", self.reward_scale)
        check_number("log_z_learning_rate", self.log_z_learning_rate)
        check_choice("reward_form", self.reward_form, ("raw", "group_normalized"))
        check_choice("importance", self.importance, IMPORTANCE_MODES)
        check_choice("log_z_features", self.log_z_features, ("last", "mean"))
        self._refuse_grpo_only()
        self._check_vllm()
        self._warn_truncated_sampling()
        # TRL's default is set under transformers' old name, which warns.
        if getattr(self, _CHECKPOINTING) is None:
            setattr(self, _CHECKPOINTING, self.gradient_checkpointing)
        try:
            super().__post_init__()
        except ValueError as error:
            raise self._explain(error) from error

    def _refuse_grpo_only(self) -> None:
        defaults = {f.name: f.default for f in dataclasses.fields(GRPOConfig)}
        for name, why in GRPO_ONLY.items():
            same = {True: "group", False: "none"} if name == "scale_rewards" else {}
            value = getattr(self, name, None)
            if name in defaults and same.get(value, value) != defaults[name]:
                raise bad_input(
                    name,
                    f"is {value!r}, which FlowRL cannot honour: {why}",
                    f"its default, {defaults[name]!r}",
                    f"leave {name} out",
                )

    def _check_vllm(self) -> None:
        """vLLM's correction weighs rows here, so it must be one number a row."""
        mode = getattr(self, "vllm_importance_sampling_mode", "sequence_mask")
        corrects = self.use_vllm and self.vllm_importance_sampling_correction
        if corrects and not mode.startswith("sequence_"):
            raise bad_input(
                "vllm_importance_sampling_mode",
                f"is {mode!r}, a weight per token",
                "'sequence_mask' or 'sequence_truncate': FlowRL weighs whole sequences",
                "choose one of these",
            )

    def _warn_truncated_sampling(self) -> None:
        defaults = {f.name: f.default for f in dataclasses.fields(GRPOConfig)}
        for name in _TRUNCATED_SAMPLING:
            if getattr(self, name) != defaults[name]:
                warnings.warn(
                    f"{name} is {getattr(self, name)!r}: completions are then not "
                    "samples of π, which the flow target needs. Fix: leave it at "
                    f"{defaults[name]!r}.",
                    UserWarning,
                    stacklevel=4,
                )

    def _explain(self, error: ValueError) -> ValueError:
        """TRL's complaint about batches, in the words of this library."""
        rows = self.generation_batch_size
        if rows is None or rows % self.num_generations == 0:
            return error
        return bad_input(
            "num_generations",
            f"is {self.num_generations}, which does not divide the {rows} rows of a "
            f"generation batch (per_device_train_batch_size "
            f"{self.per_device_train_batch_size} x processes x steps_per_generation)",
            "whole groups: the same number of completions for every prompt",
            "change num_generations, per_device_train_batch_size or "
            "gradient_accumulation_steps",
        )

    @classmethod
    def from_experiment(
        cls,
        config: ExperimentConfig,
        output_dir: str | Path,
        *,
        max_completion_length: int,
        processes: int = 1,
        **changes: Any,
    ) -> FlowRLConfig:
        """The same run for TRL: what ``train(config)`` does, on TRL's engine.

        Args:
            config: a run of this library with ``algorithm="flowrl"``.
            output_dir: where TRL saves.
            max_completion_length: T of the task.
            processes: how many share the batch of P x G rows.
            changes: TRL's settings on top (they win).

        Raises:
            ValueError: another algorithm, or rows that do not share out.
        """
        settings = translate(config, processes)
        settings["max_completion_length"] = max_completion_length
        return cls(output_dir=str(output_dir), **{**settings, **changes})


def translate(config: ExperimentConfig, processes: int = 1) -> dict[str, Any]:
    """An ``ExperimentConfig`` in TRL's words, as keyword arguments."""
    if config.algorithm != "flowrl":
        raise bad_input(
            "config",
            f"has algorithm {config.algorithm!r}",
            "'flowrl'",
            "use TRL's own trainer for the others",
        )
    for name, value in (("entropy_coef", 0.0), ("log_z", "learned")):
        if getattr(config, name) != value:
            raise bad_input(
                name,
                f"is {getattr(config, name)!r}",
                f"{value!r}, the only one that FlowRLTrainer has",
                f"set {name}={value!r}",
            )
    rows = config.prompts_per_step * config.num_generations
    if rows % processes:
        raise bad_input(
            "processes",
            f"is {processes}, which does not divide the {rows} rows of a batch",
            "a divisor of prompts_per_step x num_generations",
            "change one of the three",
        )
    return {
        **{name: getattr(config, name) for name in _SAME},
        "max_steps": config.steps * config.updates_per_batch,
        "per_device_train_batch_size": rows // processes,
        "num_iterations": config.updates_per_batch,
        "epsilon": config.clip_low,
        "epsilon_high": config.clip_high,
        "lr_scheduler_type": _SCHEDULES[config.lr_schedule],
        "adam_beta2": 0.999,
        "weight_decay": 0.0,
        "disable_dropout": True,
        _CHECKPOINTING: False,
    }
