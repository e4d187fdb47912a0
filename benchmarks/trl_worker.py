"""TRL's GRPOTrainer behind a pipe: one training step for each line it is sent.

Started by ``step_vs_trl.py`` with the Python of an environment that has TRL; not
meant to be started by hand.  Protocol, one JSON object a line:

* standard input: first the settings, then ``{"command": "step"}`` for every
  step, ``{"command": "stop"}`` or the end of the input to finish;
* standard output: ``{"event": "ready", "versions": {...}, "trainable": ...}`` once,
  then
  ``{"event": "step", "seconds": ..., "cpu_seconds": ..., "tokens": ...}`` a step.

Everything that TRL and its friends print goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = ("trl", "transformers", "peft", "accelerate", "torch")


class Finished(Exception):
    """Raised inside the trainer's loop when the parent asks it to stop."""


def open_pipe():
    """The protocol's pair of streams; prints are sent to standard error."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return sys.stdin, replies


def build_tokenizer(characters: str, pad_id: int, eos_id: int):
    """One token a character, with the ids that the project's task uses."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {character: index for index, character in enumerate(characters)}
    vocab |= {"<pad>": pad_id, "<eos>": eos_id}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )


def lora_config(settings: dict):
    """The adapter of ``add_lora``: all linear layers but the head, no dropout."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings["lora_rank"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def grpo_arguments(settings: dict, folder: str):
    """GRPOConfig: the same work as ours, and nothing that only costs time."""
    from trl import GRPOConfig

    rows = settings["prompts"] * settings["num_generations"]
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=settings["bf16"],
        seed=settings["seed"],
        # One batch of all rows, one update of it; beta > 0: the reference runs.
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        num_iterations=1,
        num_generations=settings["num_generations"],
        max_completion_length=settings["max_completion_tokens"],
        temperature=settings["temperature"],
        beta=settings["kl_coef"],
        epsilon=settings["clip_low"],
        epsilon_high=settings["clip_high"],
        loss_type="grpo",
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=settings["max_grad_norm"],
        max_steps=1_000_000,
        # On by default; the forward pass is then computed twice.
        gradient_checkpointing=settings["gradient_checkpointing"],
        disable_dropout=True,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )


class TinyLM:
    """The course's tiny model on ``make_number``, from a folder.

    Attributes:
        model: float32.
        tokenizer: TRL's ``processing_class``.
        texts: the prompts, as TRL gets them.
    """

    def __init__(self, settings: dict):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(
            settings["model"], dtype="float32", local_files_only=True
        )
        self.tokenizer = build_tokenizer(
            settings["characters"], settings["pad_id"], settings["eos_id"]
        )
        self.texts = settings["texts"]

    def score(self, prompts, completions, completion_ids) -> list[float]:  # noqa: ARG002
        """The project's own verifier."""
        from flowrl_lab.tasks.make_number import verify_answer

        pairs = zip(prompts, completions, strict=True)
        return [float(verify_answer(prompt, text)) for prompt, text in pairs]


class TextLM:
    """A model of the hub on a text task; attributes as ``TinyLM``'s."""

    def __init__(self, settings: dict):
        import torch

        from benchmarks.workloads import make_text_task
        from flowrl_lab.policies.loading import load_language_model

        loaded = load_language_model(settings["model"], dtype="float32")
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self._task = make_text_task(settings, loaded)
        self._asked = {self._task.render(p): p for p in self._task.prompts("train")}
        self.texts = list(self._asked)
        every = torch.arange(self._task.vocab_size)[:, None]
        ends = self._task.ended(every).nonzero().squeeze(-1).tolist()
        # TRL stops at these, too, and masks what comes after them.
        self.model.generation_config.eos_token_id = ends

    def score(self, prompts, completions, completion_ids) -> list[float]:  # noqa: ARG002
        """The project's own verifier, on tokens as in its own loop."""
        import torch

        width = max(map(len, completion_ids))
        ids = torch.full((len(completion_ids), width), self._task.pad_id)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, tokens in enumerate(completion_ids):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        batch = self._task.encode([self._asked[prompt] for prompt in prompts])
        return self._task.score(batch, ids, mask, num_generations=1).tolist()


KINDS = {"tiny_lm": TinyLM, "smollm2": TextLM}


def make_reward(work: dict, side):
    """The verifier as a TRL reward; counts what was sampled."""

    def reward(prompts, completions, completion_ids, **_columns):
        work["tokens"] = sum(len(ids) for ids in completion_ids)
        work["rows"] = len(completions)
        work["rewards"] = side.score(prompts, completions, completion_ids)
        return work["rewards"]

    return reward


def make_callback(commands, reply, work: dict):
    """Waits for a command before each step and reports the step after it."""
    from transformers import TrainerCallback

    class Paced(TrainerCallback):
        def on_step_begin(self, *_args, **_kwargs):
            line = commands.readline()
            if not line or json.loads(line)["command"] == "stop":
                raise Finished
            self.start = time.perf_counter(), time.process_time()

        def on_step_end(self, *_args, **_kwargs):
            now = time.perf_counter(), time.process_time()
            reply(
                {
                    "event": "step",
                    "seconds": now[0] - self.start[0],
                    "cpu_seconds": now[1] - self.start[1],
                    "reward": sum(work["rewards"]) / work["rows"],
                    "tokens": work["tokens"],
                    "rows": work["rows"],
                }
            )

    return Paced()


def make_trainer(settings: dict, folder: str, callback, work: dict):
    """GRPOTrainer on the settings' model, LoRA on all linear layers."""
    from datasets import Dataset
    from trl import GRPOTrainer

    side = KINDS[settings["kind"]](settings)
    return GRPOTrainer(
        model=side.model,
        reward_funcs=make_reward(work, side),
        args=grpo_arguments(settings, folder),
        train_dataset=Dataset.from_dict({"prompt": side.texts}),
        processing_class=side.tokenizer,
        peft_config=lora_config(settings),
        callbacks=[callback],
    )


def main() -> int:
    commands, replies = open_pipe()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    settings = json.loads(commands.readline())

    import torch

    torch.set_num_threads(settings["threads"])

    def reply(message: dict) -> None:
        replies.write(json.dumps(message) + "\n")

    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    work: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        callback = make_callback(commands, reply, work)
        trainer = make_trainer(settings, folder, callback, work)
        weights = [p.numel() for p in trainer.model.parameters() if p.requires_grad]
        reply({"event": "ready", "versions": versions, "trainable": sum(weights)})
        with contextlib.suppress(Finished):
            trainer.train()
    return 0


if __name__ == "__main__":
    sys.exit(main())
