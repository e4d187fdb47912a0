"""FlowRL in TRL: ``FlowRLTrainer`` is ``GRPOTrainer`` with this library's loss.

    trainer = FlowRLTrainer(
        model=..., reward_funcs=..., train_dataset=..., peft_config=...,
        args=FlowRLConfig(output_dir="out", reward_scale=8.0),
    )
    trainer.train()

TRL samples, scores, distributes, saves and logs.  What is replaced is the loss:
``flowrl_lab.losses.flowrl_loss`` of the log-probs that TRL computes, with a Z_φ that
reads the reference model's state of the prompt and is trained, saved
(``log_z.safetensors``) and resumed beside the adapter.  LoRA and full fine-tuning,
gradient accumulation, several processes, vLLM and DeepSpeed are TRL's own settings.

Tested with TRL's versions in ``TRL_VERSIONS``, on one and two processes without a
GPU; vLLM's and DeepSpeed's settings are checked, but were not run.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, set_seed

from flowrl_lab._validation import bad_input
from flowrl_lab.advantages import group_normalized
from flowrl_lab.integrations.trl_config import FlowRLConfig
from flowrl_lab.integrations.trl_log_z import LogZRider, load_log_z
from flowrl_lab.integrations.trl_task import task_for_trl
from flowrl_lab.losses import (
    clip_fraction,
    flowrl_loss,
    flowrl_residuals,
)
from flowrl_lab.policies.language_model import add_lora
from flowrl_lab.policies.loading import load_language_model
from flowrl_lab.tasks import load_task
from flowrl_lab.tokens import masked_sum
from flowrl_lab.training.config import ExperimentConfig

from trl import GRPOTrainer  # isort: skip - FlowRLConfig's module has checked it

__all__ = ["FlowRLConfig", "FlowRLTrainer", "load_log_z"]


class FlowRLTrainer(GRPOTrainer):
    """TRL's trainer with FlowRL's loss and its learned partition function.

    Args:
        model: as for ``GRPOTrainer``: a name, a model or a PEFT model.  The
            reference is that model as it is now.
        reward_funcs: as for ``GRPOTrainer``; the reward is their weighted sum.
        args: a ``FlowRLConfig``.
        trl_arguments: the other arguments of ``GRPOTrainer`` (``train_dataset``,
            ``processing_class``, ``peft_config``, ...).

    Attributes:
        log_z: the ``LogZRider``: ``log_z.head`` maps prompt features to log Z.

    Raises:
        ValueError: ``args`` is no FlowRLConfig; a model with images or with a
            mixture of experts whose balance loss is on.
    """

    _tag_names = ["trl", "flowrl"]  # noqa: RUF012 - as TRL declares it
    _name = "FlowRL"
    _paper = {  # noqa: RUF012
        "title": "FlowRL: Matching Reward Distributions for LLM Reasoning",
        "id": "2509.15207",
    }
    # The loss below is a plain mean; the Trainer divides it for accumulation.
    loss_is_scaled_for_ga = False

    def __init__(
        self, model, reward_funcs=None, args=None, **trl_arguments: Any
    ) -> None:
        if not isinstance(args, FlowRLConfig):
            raise bad_input(
                "args",
                f"is a {type(args).__name__}",
                "a FlowRLConfig",
                "FlowRLTrainer(..., args=FlowRLConfig(output_dir=...))",
            )
        # TRL runs the reference only if its KL weight is above 0.  The weight itself
        # is read by GRPO's loss alone, which is not used here.
        args = copy.copy(args)
        args.beta = 1.0
        set_seed(args.seed)  # TRL before 1.15 draws the adapter's weights unseeded
        super().__init__(
            model=model, reward_funcs=reward_funcs, args=args, **trl_arguments
        )
        self.compute_loss_func = None  # older TRL keeps the loss whole by a stand-in
        self._refuse_models()
        self._scores: Tensor | None = None
        self.log_z = LogZRider(
            self.model.config.get_text_config().hidden_size,
            seed=args.seed,
            learning_rate=args.log_z_learning_rate,
            features=args.log_z_features,
            device=self.accelerator.device,
        )
        self.add_callback(_StepLogZ(self))

    @classmethod
    def from_experiment(
        cls,
        config: ExperimentConfig,
        output_dir: str | Path,
        *,
        task=None,
        processes: int = 1,
        **changes: Any,
    ) -> FlowRLTrainer:
        """What ``train(config, task=task)`` trains, on TRL's engine.

        The same model and adapter, the same prompts, the same reward.

        Args:
            config: a FlowRL run of the policy "hf_lm".
            output_dir: where TRL saves.
            task: a task of your own; None takes the config's.
            processes: how many share the batch of P x G rows.
            changes: TRL's settings on top.

        Raises:
            ValueError: as ``FlowRLConfig.from_experiment``; no such task or model.
        """
        task = load_task(config.task, **config.task_options) if task is None else task
        args = FlowRLConfig.from_experiment(
            config,
            output_dir,
            max_completion_length=task.max_completion_tokens,
            processes=processes,
            **changes,
        )
        loaded = load_language_model(config.model, dtype=config.dtype)
        model = add_lora(
            loaded.model,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            seed=config.seed,
        )
        parts = task_for_trl(task, tokenizer=loaded.tokenizer)
        return cls(model=model, args=args, **parts)

    def _refuse_models(self) -> None:
        if self._is_vlm:
            raise bad_input(
                "processing_class",
                f"is a {type(self.processing_class).__name__}, for text and images",
                "a tokenizer: log Z reads text prompts",
                "train a text model",
            )
        if self.aux_loss_enabled:
            raise bad_input(
                "router_aux_loss_coef",
                f"is {self.router_aux_loss_coef}: a second loss beside FlowRL's",
                "0.0",
                "set router_aux_loss_coef=0.0",
            )

    # ------------------------------------------------------------- the batch

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """TRL's rewards of all processes, kept for ``_local_rewards``."""
        self._scores = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )
        return self._scores

    def _generate_and_score_completions(self, inputs):
        """TRL's batch with each row's reward and its prompt's features."""
        batch = super()._generate_and_score_completions(inputs)
        batch["flowrl_rewards"] = self._local_rewards(len(inputs))
        batch["log_z_features"] = self._prompt_features(
            batch["prompt_ids"], batch["prompt_mask"]
        )
        return batch

    def _local_rewards(self, rows: int) -> Tensor:
        """The weighted sum of the rewards, in the run's form; this process's rows."""
        weights = self.reward_weights.to(self._scores)
        rewards = (self._scores * weights).nansum(dim=1)
        unscored = torch.isnan(self._scores).all(dim=1)
        if unscored.any() or not torch.isfinite(rewards).all():
            raise ValueError(
                f"{int((unscored | ~torch.isfinite(rewards)).sum())} of {len(rewards)} "
                "completions have no finite reward; FlowRL needs one for each. Fix: "
                f"let {', '.join(self.reward_func_names)} return 0 for what it cannot "
                "judge."
            )
        if self.args.reward_form == "group_normalized":
            training = self.model.training
            size = self.num_generations if training else self.num_generations_eval
            rewards = group_normalized(rewards, size)
        first = self.accelerator.process_index * rows
        return rewards[first : first + rows]

    @torch.no_grad()
    def _prompt_features(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """What the reference knows of each prompt: one row of float32 a row."""
        size = self.args.per_device_train_batch_size
        chunks = zip(prompt_ids.split(size), prompt_mask.split(size), strict=True)
        with self._as_reference() as model, self.accelerator.autocast():
            states = [_last_states(model, *chunk) for chunk in chunks]
        states = torch.cat(states).float()
        if self.args.log_z_features == "last":
            return states[:, -1]  # TRL pads prompts on the left
        keep = prompt_mask[..., None]
        return (states * keep).sum(1) / keep.sum(1)

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[torch.nn.Module]:
        """The reference: a second model, a second adapter, or none at all."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        model = self.accelerator.unwrap_model(self.model)
        if "ref" not in model.peft_config:
            with model.disable_adapter():
                yield model
            return
        active = model.active_adapter
        model.set_adapter("ref")
        try:
            yield model
        finally:
            model.set_adapter(active)

    # -------------------------------------------------------------- the loss

    def compute_loss(
        self,
        model,
        inputs,
        return_outputs=False,
        num_items_in_batch=None,  # noqa: ARG002
    ):
        """``flowrl_loss`` of the rows, and their mean; notes what the log shows."""
        if return_outputs:
            raise ValueError("FlowRLTrainer returns no outputs. Fix: ask for the loss.")
        log_probs, entropies = self._log_probs(model, inputs)
        mask = _counted(inputs)
        old = inputs.get("old_per_token_logps")
        old = log_probs.detach() if old is None else old
        log_z = self.log_z(inputs["log_z_features"])
        reference, rewards = inputs["ref_per_token_logps"], inputs["flowrl_rewards"]
        args = self.args
        form = {
            "reward_scale": args.reward_scale,
            "length_normalize": args.length_normalize,
        }
        clip = {"clip_low": self.epsilon_low, "clip_high": self.epsilon_high}
        rows = flowrl_loss(
            *(log_z, log_probs, old, reference, rewards, mask),
            importance=args.importance,
            reduction="none",
            **(form | clip),
        )
        correction = inputs.get("importance_sampling_ratio")
        if correction is not None:  # vLLM's samples are not quite π_old's
            rows = rows * correction.view(-1)
        with torch.no_grad():
            residuals = flowrl_residuals(
                log_z, log_probs, reference, rewards, mask, **form
            )
            self._note(log_z, residuals, log_probs, old, reference, entropies, mask)
        return rows.mean()

    def _log_probs(self, model, inputs) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the completion tokens, as TRL computes them."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        log_probs, entropies, _ = self._get_per_token_logps_and_entropies(
            model, ids, mask, inputs["completion_ids"].shape[1], compute_entropy=True
        )
        return log_probs, entropies

    def _note(
        self, log_z, residuals, log_probs, old, reference, entropies, mask
    ) -> None:
        """Put this library's measures into TRL's log, averaged over the processes."""
        clip = {"clip_low": self.epsilon_low, "clip_high": self.epsilon_high}
        clipped = clip_fraction(log_probs, old, mask, level="sequence", **clip)
        measured = {
            "log_z": log_z.mean(),
            "residual_mean": residuals.mean(),
            "residual_square": residuals.square().mean(),
            "kl_to_reference": masked_sum(old - reference, mask).mean(),
            "entropy": (entropies * mask).sum() / mask.sum(),
            "clip_fraction": clipped,
        }
        values = torch.stack([value.float() for value in measured.values()])
        values = self.accelerator.reduce(values, reduction="mean").tolist()
        found = dict(zip(measured, values, strict=True))
        found["residual_rms"] = found.pop("residual_square") ** 0.5
        mode = "train" if self.model.training else "eval"
        for name, value in found.items():
            self._metrics[mode][name].append(value)

    # ------------------------------------------------------ saving, resuming

    def _save(self, output_dir=None, state_dict=None) -> None:
        super()._save(output_dir, state_dict=state_dict)
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            self.log_z.save(folder)

    def _save_optimizer_and_scheduler(self, output_dir) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.log_z.save_optimizer(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        # Called by every engine before the first step, also without a checkpoint.
        if checkpoint is not None:
            self.log_z.load(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    def step_log_z(self) -> None:
        """Move Z_φ once: the policy's optimiser has just moved the policy."""
        peak = self.args.learning_rate
        schedule = self._get_learning_rate() / peak if peak else 1.0
        self.log_z.step(self.accelerator, schedule)


class _StepLogZ(TrainerCallback):
    """Steps Z_φ whenever the Trainer steps the policy."""

    def __init__(self, trainer: FlowRLTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, *_facts, **_more) -> None:
        self.trainer.step_log_z()


def _counted(inputs: dict[str, Tensor]) -> Tensor:
    """True on the completion's own tokens: no padding, nothing a tool wrote."""
    mask = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool()


def _last_states(model, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
    """The backbone's last hidden states, from a call of the whole model.

    Engines that cut a model up (DeepSpeed, FSDP) put it together for calls of the
    whole, so the backbone is listened to instead of called.
    """
    kept: list[Tensor] = []
    inner = model.module if hasattr(model, "module") else model
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    def keep(_module, _inputs, output) -> None:
        kept.append(output.last_hidden_state)

    handle = inner.base_model.register_forward_hook(keep)
    try:
        model(
            input_ids=prompt_ids,
            attention_mask=prompt_mask,
            use_cache=False,
            logits_to_keep=1,
        )
    finally:
        handle.remove()
    return kept[0]
