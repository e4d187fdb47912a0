"""Write every drawing: ``python -m drawings [NAME ...]``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from drawings import losses, machine, race, result, targets
from drawings.sheet import Sheet

FOLDER = Path(__file__).resolve().parents[1] / "notebooks" / "drawings"
DRAWINGS: dict[str, Callable[[], Sheet]] = {
    make.__name__: make
    for make in (
        race.race,
        result.result,
        machine.course_map,
        machine.one_prompt_many_answers,
        targets.mass_moves,
        targets.two_kls,
        targets.reward_to_target,
        targets.why_z,
        targets.z_as_a_network,
        targets.flow_tree,
        targets.trajectory_balance,
        targets.log_z_meets,
        losses.rollout,
        losses.shift,
        losses.masks,
        losses.grpo_group,
        losses.clip,
        losses.losses_family,
        losses.flowrl_loss_terms,
        losses.length_normalisation,
        losses.importance_weight,
        machine.training_step,
        machine.exact_referee,
        machine.code_reward,
        machine.lora,
        machine.cold_start,
        machine.where_it_plugs_in,
        machine.four_verdicts,
        machine.memory,
        machine.data_parallel,
    )
}


def main(names: list[str]) -> None:
    """Write the drawings that are named, or all."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or DRAWINGS:
        path = FOLDER / f"{name}.svg"
        path.write_text(DRAWINGS[name]().svg(), encoding="utf-8", newline="\n")
        print(path.relative_to(FOLDER.parents[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
