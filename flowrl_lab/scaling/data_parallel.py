"""One batch on several processes: the arithmetic, and a step that really does it.

Each process takes some of the rows, computes their gradient, and the gradients are
averaged ("all-reduce").  Two things must be right for the result to be that of one
process: the average counts *rows*, and a group's z-scores need the whole group.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from flowrl_lab._files import scratch_folder
from flowrl_lab._validation import bad_input, check_count
from flowrl_lab.advantages import group_normalized
from flowrl_lab.losses import flowrl_loss
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.types import PromptBatch, Rollout

__all__ = [
    "Apart",
    "batch_gradient",
    "combine_gradients",
    "gathered_normalized",
    "sample_batch",
    "share_of",
    "step_apart",
]


ROWS = ("completion_ids", "completion_mask", "old_log_probs", "ref_log_probs")
ROWS += ("rewards",)  # what a rollout has one of for each completion


def combine_gradients(
    gradients: Float[Tensor, "W *shape"],  # noqa: F821, UP037
    rows: Sequence[int],
) -> Float[Tensor, "*shape"]:
    """The gradient of a mean over all rows, from those of the processes' own means.

        g = Σ_w n_w g_w / Σ_w n_w

    Args:
        gradients: of each process's mean loss, one row a process.
        rows: how many rows each process averaged over.

    Returns:
        The gradient of the mean over all rows together.

    Raises:
        ValueError: another number of counts than of gradients, or a count below 1.
    """
    if len(rows) != len(gradients):
        raise bad_input(
            "rows",
            f"has {len(rows)} counts for {len(gradients)} gradients",
            "one count for each process",
            "pass the rows of every process, in the same order",
        )
    for count in rows:
        check_count("rows", count)
    weights = torch.tensor(rows, dtype=gradients.dtype, device=gradients.device)
    return torch.tensordot(weights / weights.sum(), gradients, dims=1)


def gathered_normalized(
    shares: Float[Tensor, "W rows"], num_generations: int, rank: int
) -> Float[Tensor, " rows"]:
    """Group-normalised rewards of one process, though groups are cut between them.

    All rewards are gathered, normalised in whole groups, and cut up again.

    Args:
        shares: the rewards that each process holds, one row a process; laid end to
            end they are the batch, groups contiguous.
        num_generations: G, the size of a group.
        rank: whose rewards are wanted.

    Returns:
        The z-scored rewards of process ``rank``.

    Raises:
        ValueError: groups that do not divide the batch, or no such process.
    """
    if not 0 <= rank < len(shares):
        raise bad_input("rank", f"is {rank}", f"0 to {len(shares) - 1}", "count from 0")
    every = group_normalized(shares.flatten(), num_generations)
    return every.view(shares.shape)[rank]


# ------------------------------------------------------------- a step that does it


def sample_batch(run) -> Rollout:
    """One scored batch of a run that has not been trained yet."""
    from flowrl_lab.training.rollouts import collect_rollout, sample_prompts

    config = run.config
    generator = torch.Generator().manual_seed(config.seed)
    prompts = sample_prompts(run.task, config.prompts_per_step, generator)
    how = {"temperature": config.temperature, "generator": generator}
    count = config.num_generations
    return collect_rollout(run.policy, run.task, prompts, count, **how)


def share_of(rollout: Rollout, rank: int, processes: int) -> Rollout:
    """The whole groups that process ``rank`` of several takes."""
    total = len(rollout.prompts)
    if processes > total:
        most, fix = f"at most {total}, one prompt each", "use fewer, or more prompts"
        raise bad_input("processes", f"is {processes}", most, fix)
    first, last = rank * total // processes, (rank + 1) * total // processes
    groups = slice(first, last)
    rows = slice(first * rollout.num_generations, last * rollout.num_generations)
    prompts = rollout.prompts
    kept = PromptBatch(
        prompts.texts[groups],
        prompts.prompt_ids[groups],
        prompts.prompt_mask[groups],
        prompts.indices[groups],
    )
    return dataclasses.replace(
        rollout, prompts=kept, **{name: getattr(rollout, name)[rows] for name in ROWS}
    )


def batch_gradient(run, rollout: Rollout) -> Float[Tensor, " N"]:
    """FlowRL's gradient on a batch: the adapter's and Z's, end to end."""
    config, mask = run.config, rollout.completion_mask
    output = run.policy.evaluate(rollout.prompts, rollout.completion_ids, mask)
    features = run.policy.prompt_features(rollout.prompts, config.log_z_features)
    log_z = run.modules["log_z"](features).repeat_interleave(rollout.num_generations)
    loss = flowrl_loss(
        *(log_z, output.log_probs, rollout.old_log_probs, rollout.ref_log_probs),
        *(rollout.rewards, mask),
        reward_scale=config.reward_scale,
        length_normalize=config.length_normalize,
    )
    weights = [*run.policy.trainable_parameters(), *run.modules.parameters()]
    gradients = torch.autograd.grad(loss, weights)
    return torch.cat([gradient.flatten() for gradient in gradients])


@dataclasses.dataclass(frozen=True)
class Apart:
    """What several processes found together.

    Attributes:
        gradient: of the whole batch, after the all-reduce.
        rows: rows that each process had.
        seconds: from start to end, imports of all processes included.
    """

    gradient: Tensor
    rows: tuple[int, ...]
    seconds: float


def step_apart(
    config: ExperimentConfig, rollout: Rollout, *, processes: int = 2
) -> Apart:
    """The batch's gradient from several processes that talk over gloo.

    Every process builds the same run from ``config``, takes its groups of
    ``rollout``, and all-reduces.

    Args:
        config: of a run of the tiny language model with FlowRL.
        rollout: from ``sample_batch`` of such a run.
        processes: how many, on this machine.

    Raises:
        ValueError: more processes than prompts.
        RuntimeError: a process failed; the text ends with what it said last.
    """
    check_count("processes", processes)
    share_of(rollout, 0, processes)  # refuse before anything is started
    start = time.perf_counter()
    with scratch_folder("flowrl-processes-") as folder:
        (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
        torch.save(_to_plain(rollout), folder / "rollout.pt")
        command = [sys.executable, "-m", __name__, str(folder), str(processes)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started = [
            subprocess.Popen([*command, str(rank)], encoding="utf-8", **pipes)
            for rank in range(processes)
        ]
        said = [process.communicate()[0] for process in started]
        for process, words in zip(started, said, strict=True):
            if process.returncode:
                last = (words.strip().splitlines() or ["it said nothing"])[-1]
                raise RuntimeError(
                    f"a process ended with code {process.returncode}: {last}"
                )
        found = torch.load(Path(folder) / "found.pt", weights_only=True)
    seconds = time.perf_counter() - start
    return Apart(found["gradient"], tuple(found["rows"]), seconds)


def _to_plain(rollout: Rollout) -> dict:
    plain = dataclasses.asdict(rollout)
    plain["prompts"]["texts"] = list(plain["prompts"]["texts"])
    return plain


def _from_plain(plain: dict) -> Rollout:
    prompts = dict(plain["prompts"])
    prompts["texts"] = tuple(prompts["texts"])
    return Rollout(**{**plain, "prompts": PromptBatch(**prompts)})


def _work(folder: Path, processes: int, rank: int) -> None:
    """One process's part of the step."""
    import torch.distributed as dist

    from flowrl_lab.training.run import Run

    torch.set_num_threads(1)
    # A file to meet at: no port to be free, no network.
    meet = (folder / "meet").resolve().as_uri()
    dist.init_process_group("gloo", meet, rank=rank, world_size=processes)
    config = ExperimentConfig.from_json((folder / "config.json").read_text("utf-8"))
    plain = torch.load(folder / "rollout.pt", weights_only=True)
    share = share_of(_from_plain(plain), rank, processes)
    rows = torch.zeros(processes)
    rows[rank] = len(share.rewards)
    gradient = batch_gradient(Run(config), share) * rows[rank]
    dist.all_reduce(rows)
    dist.all_reduce(gradient)  # the sum of n_w g_w
    if rank == 0:
        counts = [int(count) for count in rows]
        found = {"gradient": gradient / rows.sum(), "rows": counts}
        torch.save(found, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
