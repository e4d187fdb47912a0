"""Write every drawing: ``python -m drawings [NAME ...]``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from drawings import losses, machine, targets
from drawings.sheet import Sheet

FOLDER = Path(__file__).resolve().parents[1] / "notebooks" / "drawings"
DRAWINGS: dict[str, Callable[[], Sheet]] = {
    make.__name__: make
    for make in (
        targets.mass_moves,
        targets.reward_to_target,
        targets.why_z,
        targets.flow_tree,
        targets.trajectory_balance,
        losses.rollout,
        losses.grpo_group,
        losses.flowrl_loss_terms,
        machine.training_step,
        machine.lora,
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
