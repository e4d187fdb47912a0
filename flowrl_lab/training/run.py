"""The training loop: one generator that yields a record for every step."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from flowrl_lab._files import write_atomically
from flowrl_lab.evaluation import Referee
from flowrl_lab.policies.device import pick_device, threads_for
from flowrl_lab.tasks._registry import refuse_while_imported
from flowrl_lab.tasks.own import place_of
from flowrl_lab.tasks.text import RewardError
from flowrl_lab.training.algorithms import Algorithm
from flowrl_lab.training.batch import Batch
from flowrl_lab.training.checkpoints import (
    check_kinds,
    load_optimizer,
    read_checkpoint,
    write_checkpoint,
)
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.making import make_task_and_policy
from flowrl_lab.training.records import (
    measure,
    nothing_measured,
    record_from_dict,
    record_to_dict,
)
from flowrl_lab.training.rollouts import (
    collect_rollout,
    measure_floor,
    sample_prompts,
    why_nothing_is_learned,
)
from flowrl_lab.training.step import make_optimizer, training_step
from flowrl_lab.training.survival import Survival, is_out_of_memory
from flowrl_lab.types import ExactReport, Rollout, Snapshot, StepRecord

__all__ = ["ExperimentConfig", "Run", "race", "train"]

STATE_FIELDS = [
    *("config", "step", "tokens", "seconds", "policy", "modules", "optimizer"),
    *("prompt_generator", "sample_generator", "records"),
]

# Those whose kind a fresh run shows; the others check themselves as they are loaded.
PLAIN = (
    *("step", "tokens", "seconds", "survival"),
    *("prompt_generator", "sample_generator"),
)


class Run:
    """A run in progress: iterate over it to train, stop whenever you like.

    What was trained stays in ``policy`` and ``records`` when the loop is left
    early or interrupted; iterating again goes on from there.

    Args:
        config: the run's settings.
        folder: where to save; None keeps everything in memory.
        save_every: steps between saves to ``folder``.
        flowrl_loss: a loss of your own for the algorithm "flowrl", with the
            arguments of ``losses.flowrl_loss`` (all but ``reduction``).  A function
            cannot be saved: ``load`` asks for it again.
        task: a task of your own, in place of the config's, such as ``text_task``
            makes.  Its import path is saved, and finds it again.

    Attributes:
        policy: the policy being trained.
        algorithm: what ``training_step`` takes beside it.
        optimizer: likewise.
        survival: what tries again, in parts, where a step fails.
        modules: the trained riders: ``"log_z"``, ``"critic"``, or none.
        records: every StepRecord so far.
        step: updates done so far.

    Raises:
        ValueError: ``folder`` already holds a run (``Run.load`` resumes it); a
            ``flowrl_loss`` that is no such function, or for another algorithm; a
            script that trains while it is imported for its task.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        folder: str | Path | None = None,
        save_every: int = 20,
        flowrl_loss: Callable[..., Tensor] | None = None,
        task=None,
    ):
        refuse_while_imported()
        if task is not None:
            config = config.replace(task=place_of(task), task_options={})
        self.config, self._own_task = config, task
        self.flowrl_loss = flowrl_loss
        self.folder = None if folder is None else Path(folder)
        self.save_every = save_every
        if self.folder is not None:
            _refuse_used_folder(self.folder)
        device = pick_device(config.device)
        self.task, self.policy = make_task_and_policy(config, device, task)
        self.algorithm = Algorithm(config, self.policy, flowrl_loss)
        self.modules = self.algorithm.modules
        self.optimizer = make_optimizer(self.policy, self.modules, config)
        self._prompt_generator = torch.Generator().manual_seed(config.seed)
        self._sample_generator = torch.Generator(device).manual_seed(config.seed)
        prompts = min(config.prompts_per_step, len(self.task.prompts("train")))
        self.survival = Survival(
            self.policy,
            config,
            batch_rows=prompts * config.num_generations,
            generators=(self._prompt_generator, self._sample_generator),
        )
        self._referee: Referee | None = None
        self._watcher: Referee | None = None
        self.records: list[StepRecord] = []
        self._floor: dict[str, tuple[float, float]] = {}
        self.step = self.tokens = 0
        self.seconds = 0.0

    def __iter__(self) -> Iterator[StepRecord]:
        return self

    def __next__(self) -> StepRecord:
        """The start; then a step at a time: sample, score, update, measure."""
        if not self.records:
            self._floor = self.survival.fitting(
                lambda: measure_floor(self.survival.policy, self.task, self.config)
            )
            self.records.append(self._record(None, nothing_measured()))
            return self.records[-1]
        if self.step >= self.config.steps:
            raise StopIteration
        survival, start = self.survival, time.perf_counter()
        survival.note, measured = "", {}
        self._set_learning_rate(self.step)
        with threads_for(self.policy):
            with self._left_whole():
                rollout = survival.fitting(self.sample)
            batch = survival.fitting(lambda: self.prepare(rollout))
            for _ in range(self.config.updates_per_batch):
                for attempt in survival.attempts(self.step + 1):
                    with attempt:
                        update = training_step(
                            survival.policy, self.optimizer, batch, self.algorithm
                        )
                        survival.went_well()
                        measured = measure(rollout, update, self.config)
        self.step += 1
        self.tokens += int(rollout.completion_mask.sum())
        self.seconds += time.perf_counter() - start
        measured.setdefault("reward", rollout.rewards.mean().item())
        said = why_nothing_is_learned(rollout) if self.step == 1 else ""
        if said and self.task.has_verdicts:  # a real model's task
            survival.announce(said)
        self.records.append(self._record(rollout, measured))
        if self.folder and self._due(self.save_every):
            self.save(self.folder)
        return self.records[-1]

    @contextlib.contextmanager
    def _left_whole(self) -> Iterator[None]:
        """Where a reward fails, the run stays as before the step, and is saved."""
        generators = (self._prompt_generator, self._sample_generator)
        before = [generator.get_state() for generator in generators]
        try:
            yield
        except RewardError as error:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)
            kept = f"The run keeps its {self.step} steps"
            if self.folder:
                self.save(self.folder)
                kept += f", saved in {self.folder}"
            error.add_note(f"{kept}; once the reward is mended, it goes on from there.")
            raise

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def sample(self) -> Rollout:
        """Draw prompts, sample and score completions of them."""
        config = self.config
        prompts = sample_prompts(
            self.task, config.prompts_per_step, self._prompt_generator
        )
        return collect_rollout(
            self.survival.policy,
            self.task,
            prompts,
            config.num_generations,
            temperature=config.temperature,
            generator=self._sample_generator,
        )

    def prepare(self, rollout: Rollout) -> Batch:
        """All that stays as it is while ``rollout`` is trained on."""
        return self.algorithm.prepare(rollout, self.survival.policy, self.step)

    def _set_learning_rate(self, done: int) -> None:
        """Of the step that follows ``done`` steps."""
        factor = _schedule(self.config.lr_schedule, done / self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    @property
    def referee(self) -> Referee:
        """The exact judge on the run's prompts of ``eval_split``, made on first use."""
        if self._referee is None:
            prompts = self.task.prompts(self.config.eval_split)
            self._referee = self._make_referee(prompts[: self.config.eval_prompts])
        return self._referee

    def _make_referee(self, prompts: Sequence[str]) -> Referee:
        return Referee(
            self.policy,
            self.task,
            prompts,
            reward_scale=self.config.reward_scale,
            temperature=self.config.temperature,
        )

    def _watch(self) -> Snapshot:
        """The watched prompt's distribution; it is judged only if it is held out."""
        judged = self.task.prompts(self.config.eval_split)
        prompt = self.config.watch_prompt or judged[0]
        if prompt in self.referee.answers:
            return self.referee.snapshot(prompt)
        if self._watcher is None:
            self._watcher = self._make_referee((prompt,))
        return self._watcher.snapshot(prompt)

    def evaluate(self) -> ExactReport:
        """The referee's exact report of the policy as it is now."""
        with threads_for(self.policy):
            return self.referee.report(
                self.textbook_log_z, log_z_features=self.config.log_z_features
            )

    @property
    def textbook_log_z(self) -> nn.Module | None:
        """Z_φ, if what it learns is the log Z that the referee computes, from the
        features that the referee reads.
        """
        log_z = self.algorithm.log_z
        return None if log_z is None else log_z.textbook

    def _record(self, rollout: Rollout | None, measured: dict) -> StepRecord:
        config = self.config
        exact = snapshot = None
        samples: tuple = ()
        if self.step == 0 or self._due(config.eval_every):
            if self.task.has_referee:
                exact = self.evaluate()
                snapshot = self._watch()
            samples = () if rollout is None else self._samples(rollout)
        return StepRecord(
            run=config.run_name,
            algorithm=config.algorithm,
            seed=config.seed,
            step=self.step,
            steps=config.steps,
            tokens=self.tokens,
            seconds=self.seconds,
            exact=exact,
            snapshot=snapshot,
            samples=samples,
            parts={} if rollout is None else rollout.parts,
            sampled=self._start_measures() if rollout is None else rollout.sampled,
            floor=self._floor,
            note=self.survival.note,
            skipped=self.survival.skipped,
            **{**nothing_measured(), **measured},
        )

    def _start_measures(self) -> dict[str, float]:
        """What the groups say before training: the floor itself."""
        return {name: mean for name, (mean, _) in self._floor.items()}

    def _samples(self, rollout: Rollout, count: int = 4):
        """The first completion of each of the first prompts, as text."""
        rows = range(0, len(rollout.rewards), rollout.num_generations)
        rows = torch.tensor(list(rows)[:count])
        device = rollout.completion_ids.device
        texts = self.task.decode(
            rollout.completion_ids[rows.to(device)],
            rollout.completion_mask[rows.to(device)],
        )
        rewards = rollout.rewards[rows.to(device)].tolist()
        return tuple(zip(rollout.prompts.texts, texts, rewards, strict=False))

    def save(self, folder: str | Path) -> None:
        """Write checkpoint, config and records to ``folder``, atomically.

        Raises:
            ValueError: ``folder`` holds another run.
        """
        folder = Path(folder)
        if folder != self.folder:
            _refuse_used_folder(folder)
            self.folder = folder
        write_checkpoint(folder / "checkpoint.pt", self._state())
        write_atomically(folder / "config.json", self.config.to_json().encode())
        lines = [json.dumps(record_to_dict(record)) for record in self.records]
        write_atomically(folder / "records.jsonl", "\n".join(lines).encode() + b"\n")

    def _state(self) -> dict:
        return {
            "config": self.config.to_json(),
            "flowrl_loss": _loss_name(self.flowrl_loss),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "policy": self.policy.state_dict(),
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "survival": self.survival.state(),
            "prompt_generator": self._prompt_generator.get_state(),
            "sample_generator": self._sample_generator.get_state(),
            "records": [json.dumps(record_to_dict(record)) for record in self.records],
            "reference_memo": self.policy.reference_memo,
        }

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        save_every: int = 20,
        flowrl_loss: Callable[..., Tensor] | None = None,
        task=None,
    ) -> Run:
        """The run saved in ``folder``, ready to continue exactly where it was.

        ``flowrl_loss`` and ``task`` are as for ``Run``; a task is looked for at its
        import path where none is given.

        Raises:
            ValueError: no run there, a checkpoint that is damaged, of another version
                or of wrong content; a run with a loss of its own without that loss,
                or the other way round; a task that is not found any more.
        """
        folder = Path(folder)
        path = folder / "checkpoint.pt"
        state = read_checkpoint(path)
        missing = [name for name in STATE_FIELDS if name not in state]
        if missing:
            raise ValueError(
                f"{path} lacks {missing}; expected what Run.save writes. Fix: name the "
                "folder of a saved run."
            )
        check_kinds(path, state, {"config": "", "flowrl_loss": ""})
        # Checkpoints from before losses could be passed in have no such entry.
        _check_same_loss(folder, state.get("flowrl_loss", ""), flowrl_loss)
        config = ExperimentConfig.from_json(state["config"])
        settings = {"save_every": save_every, "flowrl_loss": flowrl_loss}
        run = cls(config, task=task, **settings)
        run.folder = folder
        fresh = {name: part for name, part in run._state().items() if name in PLAIN}
        check_kinds(path, state, fresh)
        try:
            run._restore(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as no:
            if is_out_of_memory(no):
                raise
            raise ValueError(
                f"{path} does not hold what Run.save writes ({type(no).__name__}: "
                f"{str(no)[:300]}). Fix: update flowrl_lab if a newer one wrote it, "
                "use an older copy, or train again."
            ) from no
        return run

    def _restore(self, state: dict) -> None:
        """Put back what ``_state`` gave."""
        self.policy.load_state_dict(state["policy"])
        self.modules.load_state_dict(state["modules"])
        load_optimizer(self.optimizer, state["optimizer"])
        if "survival" in state:  # older checkpoints have none
            self.survival.load_state(state["survival"])
        if state.get("reference_memo"):
            self.policy.reference_memo.update(state["reference_memo"])
        self._prompt_generator.set_state(state["prompt_generator"])
        self._sample_generator.set_state(state["sample_generator"])
        self.step, self.tokens = state["step"], state["tokens"]
        self.seconds = state["seconds"]
        self.records = [record_from_dict(json.loads(row)) for row in state["records"]]
        self._floor = self.records[-1].floor if self.records else {}
        if self.step > self.config.steps:
            raise ValueError(f"step {self.step} of {self.config.steps}")
        self._set_learning_rate(max(self.step - 1, 0))  # as it was left

    def untrained_policy(self):
        """A policy as this run's was before its first step; it needs as much memory."""
        return make_task_and_policy(self.config, self.policy.device, self._own_task)[1]

    def fork(self, *, folder: str | Path | None = None, **changes) -> Run:
        """A new run that starts from this run's policy, under changed settings.

        The policy's weights are copied; step count, optimiser, log Z and critic
        start anew.  A loss of your own goes with it, as long as the algorithm is
        "flowrl".  This run is left as it is.
        """
        changes.setdefault("name", "")
        config = self.config.replace(**changes)
        loss = self.flowrl_loss if config.algorithm == "flowrl" else None
        task = None if "task" in changes else self._own_task
        run = Run(config, folder=folder, flowrl_loss=loss, task=task)
        run.policy.load_state_dict(self.policy.state_dict())
        return run


def train(
    config: ExperimentConfig,
    *,
    flowrl_loss: Callable[..., Tensor] | None = None,
    task=None,
) -> Iterator[StepRecord]:
    """Train as ``config`` says, yielding the start and then every step.

    ``for record in train(config): plot.update(record)`` is the whole interface;
    keep a ``Run`` instead where the policy is wanted afterwards.  ``flowrl_loss``
    and ``task`` are your own loss and task, as for ``Run``.
    """
    yield from Run(config, flowrl_loss=flowrl_loss, task=task)


def race(*runs: Run | ExperimentConfig, task=None) -> Iterator[StepRecord]:
    """Train several runs in turns, one step each, so that they can be watched.

    Each run draws from its own generators: its records equal those it would have
    yielded alone.  Those of a run that has trained already come first, so that a plot
    of a race that was interrupted and goes on shows the whole of it.  ``task`` is your
    own, for those given as configs, as for ``Run``.

    Raises:
        ValueError: no runs, or two with the same name.
    """
    started = [run if isinstance(run, Run) else Run(run, task=task) for run in runs]
    names = [run.config.run_name for run in started]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"the runs are named {names}; expected one or more different names. "
            "Fix: give each config its own `name`."
        )
    for run in started:
        yield from tuple(run.records)
    loops = [iter(run) for run in started]
    while loops:
        for loop in tuple(loops):
            record = next(loop, None)
            if record is None:
                loops.remove(loop)
            else:
                yield record


def _loss_name(flowrl_loss) -> str:
    """What a checkpoint can say about a loss from outside; empty for none."""
    if flowrl_loss is None:
        return ""
    return getattr(flowrl_loss, "__qualname__", type(flowrl_loss).__qualname__)


def _check_same_loss(folder: Path, saved: str, flowrl_loss) -> None:
    """Refuse to go on with another kind of loss than the run was started with."""
    if saved and flowrl_loss is None:
        raise ValueError(
            f"the run in {folder} was trained with a loss of its own, {saved!r}; a "
            "checkpoint holds its name, not its code. Fix: Run.load(folder, "
            f"flowrl_loss={saved.split('.')[-1]}), with the same function."
        )
    if flowrl_loss is not None and not saved:
        raise ValueError(
            f"the run in {folder} was trained with the library's loss; got "
            f"{_loss_name(flowrl_loss)!r}. Fix: load it without flowrl_loss, or start "
            "a new Run with it."
        )


def _refuse_used_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file. Fix: name a new folder for the run.")
    if any((folder / name).exists() for name in ("checkpoint.pt", "records.jsonl")):
        raise ValueError(
            f"{folder} already holds a run; nothing is overwritten. Fix: name a new "
            "folder, or continue that run with Run.load (command line: --resume)."
        )


def _schedule(name: str, progress: float) -> float:
    """Share of the peak learning rate at ``progress`` in [0, 1)."""
    if name == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress)) if name == "cosine" else 1.0
