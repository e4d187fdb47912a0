"""Scrub through stored runs: β × objective × training step."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import traitlets

from flowrl_lab._validation import bad_input
from flowrl_lab.measuring.recorded import (
    EVERY,
    OBJECTIVES,
    REWARD_SCALES,
    STEPS,
    WITHOUT_SCALE,
    Comparison,
    check_point,
    compare_runs,
    grid_config,
    load_landscape_runs,
    trace_run,
)
from flowrl_lab.metrics import effective_number, kl_divergence
from flowrl_lab.plots.panels import (
    Page,
    describe_page,
    format_number,
    run_styles,
    states_panel,
)
from flowrl_lab.plots.placement import place_page
from flowrl_lab.plots.static import draw_svg
from flowrl_lab.types import Snapshot
from flowrl_lab.widgets._base import Explorer, read_script, read_styles

__all__ = ["RunScrubber"]

REMARKS = {
    "reinforce_pp": "Maximises the reward. β is not in this objective: the β slider "
    "moves only the grey target.",
    "grpo": "Maximises the reward, z-scored in its group. β is not in this objective: "
    "the β slider moves only the grey target.",
    "kl_reinforce": "Maximises r − (1/β) log(π/π_ref): a reward with a KL penalty of "
    "matched weight.",
    "flowrl": "Matches p*, with raw rewards and a learned log Z.",
    "flowrl_paper": "Matches a target made from z-scored rewards, as in the paper: it "
    "is not the grey one, and it sharpens itself as the rewards grow alike.",
}
STILL_OBJECTIVES = ("grpo", "flowrl_paper", "flowrl")
REPORTS = 20  # how often a live run tells its step


class RunScrubber(Explorer):
    """Moves through stored runs on Figure 1's landscape, at once and in the browser.

    Three controls: the objective, β and the training step.  *Run this point live*
    trains the chosen run in the kernel and draws it over the stored one.  Every
    control left out stands where the last scrubber of this kernel was left, at
    first at flowrl, β = 15 and step 400.

    Args:
        objective: one of ``measuring.recorded.OBJECTIVES``.
        reward_scale: β, one of ``measuring.recorded.REWARD_SCALES``.
        step: 0, 10, … 400.
        folder: where the stored runs lie; None for the shipped ``data/explorer``.

    Attributes:
        live: (objective, β) -> log π of the runs trained here, float64 [time, N].

    Raises:
        ValueError: for a point that is not stored, or stored runs that are missing
            or damaged (the message has the command that remakes them).
    """

    _esm = read_script("run_scrubber.js")
    _css = read_styles("run_scrubber.css")
    _log_probs = traitlets.Bytes().tag(sync=True)
    _rewards = traitlets.Bytes().tag(sync=True)
    _objectives = traitlets.List(traitlets.Dict()).tag(sync=True)
    _scales = traitlets.List(traitlets.Float()).tag(sync=True)
    _steps = traitlets.List(traitlets.Int()).tag(sync=True)
    _live = traitlets.Dict().tag(sync=True)
    _status = traitlets.Unicode("").tag(sync=True)
    objective = traitlets.Unicode("flowrl").tag(sync=True)
    reward_scale = traitlets.Float(15.0).tag(sync=True)
    step = traitlets.Int(STEPS).tag(sync=True)

    _left_at: ClassVar[dict] = {
        "objective": "flowrl",
        "reward_scale": 15.0,
        "step": STEPS,
    }

    def __init__(
        self,
        objective: str | None = None,
        reward_scale: int | float | None = None,
        step: int | None = None,
        *,
        folder: str | Path | None = None,
    ) -> None:
        self.runs = load_landscape_runs(folder)
        self.live: dict[tuple[str, float], np.ndarray] = {}
        asked = {"objective": objective, "reward_scale": reward_scale, "step": step}
        place = {
            name: self._left_at[name] if value is None else value
            for name, value in asked.items()
        }
        check_point(place["objective"], place["reward_scale"])
        check_step(place["step"])
        stored = [self.runs.log_probs[name] for name in OBJECTIVES]
        super().__init__(
            _log_probs=np.concatenate(stored).astype(np.float32).tobytes(),
            _rewards=self.runs.rewards.tobytes(),
            _objectives=describe_objectives([len(runs) for runs in stored]),
            _scales=list(REWARD_SCALES),
            _steps=list(self.runs.steps),
            **place,
        )
        self.observe(self._remember, list(asked))
        self.on_msg(self._on_message)

    def _remember(self, change) -> None:
        self._left_at[change["name"]] = change["new"]

    @traitlets.validate("objective")
    def _check_objective(self, proposal):
        check_point(proposal["value"], REWARD_SCALES[0])
        return proposal["value"]

    @traitlets.validate("reward_scale")
    def _check_reward_scale(self, proposal):
        check_point(OBJECTIVES[0], proposal["value"])
        return proposal["value"]

    @traitlets.validate("step")
    def _check_step(self, proposal):
        check_step(proposal["value"])
        return proposal["value"]

    def log_policy(
        self,
        objective: str | None = None,
        reward_scale: int | float | None = None,
        step: int | None = None,
    ) -> torch.Tensor:
        """log π of a stored point, normalised, float64 [N].

        Arguments left out are where the controls stand.

        Raises:
            ValueError: for a point that is not stored.
        """
        objective, scale, step = self._point(objective, reward_scale, step)
        row = self.runs.run(objective, scale)[step // EVERY]
        return torch.from_numpy(row.astype(np.float64)).log_softmax(0)

    def log_target(self, reward_scale: int | float | None = None) -> torch.Tensor:
        """log p* at β, float64 [N]; by default where the slider stands.

        Raises:
            ValueError: for a β that is not stored.
        """
        _, scale, _ = self._point(None, reward_scale, None)
        return torch.from_numpy(self.runs.target(scale))

    def measure(
        self,
        objective: str | None = None,
        reward_scale: int | float | None = None,
        step: int | None = None,
    ) -> dict[str, float]:
        """The numbers that the widget shows at a stored point.

        Arguments left out are where the controls stand.

        Returns:
            ``effective`` and ``target_effective`` states, ``kl_policy_target`` =
            KL(π‖p*) and ``kl_target_policy`` = KL(p*‖π) in nats, ``reward`` and
            ``target_reward`` (expected).

        Raises:
            ValueError: for a point that is not stored.
        """
        policy = self.log_policy(objective, reward_scale, step)
        target = self.log_target(reward_scale)
        rewards = torch.from_numpy(self.runs.rewards)
        numbers = {
            "effective": effective_number(policy),
            "target_effective": effective_number(target),
            "kl_policy_target": kl_divergence(policy, target),
            "kl_target_policy": kl_divergence(target, policy),
            "reward": (policy.exp() * rewards).sum(),
            "target_reward": (target.exp() * rewards).sum(),
        }
        return {name: float(value) for name, value in numbers.items()}

    def _point(self, objective, reward_scale, step) -> tuple[str, float, int]:
        objective = self.objective if objective is None else objective
        scale = self.reward_scale if reward_scale is None else reward_scale
        step = self.step if step is None else step
        check_point(objective, scale)
        check_step(step)
        return objective, float(scale), step

    def run_live(
        self, objective: str | None = None, reward_scale: int | float | None = None
    ) -> Comparison:
        """Train a point of the grid now and compare it with the stored run.

        Arguments left out are where the controls stand.  The browser draws the new
        run over the stored one.

        Raises:
            ValueError: for a point that is not in the grid.
        """
        objective, scale, _ = self._point(objective, reward_scale, None)
        name = objective if objective in WITHOUT_SCALE else f"{objective} β = {scale:g}"

        def report(step: int) -> None:
            if step % (STEPS // REPORTS) == 0:
                self._status = f"training {name}: step {step} of {STEPS}"

        now = trace_run(grid_config(objective, scale), report)
        comparison = compare_runs(now, self.runs.run(objective, scale))
        self.live[objective, scale] = now
        drawn = {
            "log_probs": now.astype(np.float32).tobytes(),
            "words": describe_comparison(comparison),
        }
        key = objective if objective in WITHOUT_SCALE else f"{objective} {scale:g}"
        self._live = {**self._live, key: drawn}
        self._status = ""
        return comparison

    def _on_message(self, _widget, content, _buffers) -> None:
        """The browser's button; what goes wrong is said beside it."""
        if content.get("ask") != "run":
            return
        self._status = "training begins"
        try:
            self.run_live(content.get("objective"), content.get("reward_scale"))
        except KeyboardInterrupt:
            self._status = "interrupted; the stored run is as it was"
        except Exception as error:  # there is no cell for a traceback to go to
            self._status = f"could not run: {error}"

    def still(self) -> tuple[str, str, str]:
        """Three objectives at the present β and step."""
        styles = run_styles([(name, name) for name in OBJECTIVES])
        states = tuple(str(state) for state in range(len(self.runs.rewards)))
        target = self.log_target().exp().numpy()
        panels, rows = [], ["objective     effective  KL(π‖p*)  KL(p*‖π)  E[reward]"]
        for name in STILL_OBJECTIVES:
            policy = self.log_policy(name).exp().numpy()
            snapshot = Snapshot("", states, policy, target, self.runs.rewards)
            panels.append(states_panel(name, styles[name], snapshot, "target p*"))
            said = self.measure(name)
            keys = ("effective", "kl_policy_target", "kl_target_policy", "reward")
            texts = (name, *(format_number(said[key]) for key in keys))
            pairs = zip(texts, (14, 11, 10, 10, 9), strict=True)
            rows.append("".join(text.ljust(width) for text, width in pairs).rstrip())
        title = f"Stored runs at β = {self.reward_scale:g}, step {self.step}"
        page = Page(title, "", (), (), tuple(panels), "")
        return draw_svg(page, place_page(page)), describe_page(page), "\n".join(rows)


def describe_comparison(comparison: Comparison) -> str:
    """How far a run made now is from the stored one."""
    largest = f"largest difference of a probability {comparison.difference:.1e}"
    if comparison.agrees:
        return f"{largest}: the same run; rounding to float16 explains it all."
    times = comparison.difference / comparison.allowed
    return (
        f"{largest}: {times:.3g} times what rounding to float16 explains. Another "
        "processor or torch adds up in another order, and now and then a sample falls "
        "on the next state."
    )


def describe_objectives(counts: list[int]) -> list[dict]:
    """What the browser needs to know of each objective.

    Args:
        counts: how many runs are stored of each.
    """
    styles = run_styles([(name, name) for name in OBJECTIVES])
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    return [
        {
            "name": name,
            "color": styles[name].color,
            "first": start,
            "scaled": count > 1,
            "remark": REMARKS[name],
        }
        for name, start, count in zip(OBJECTIVES, starts, counts, strict=True)
    ]


def check_step(step: int) -> None:
    """Check that a step is stored.

    Raises:
        ValueError: unless it is one of 0, 10, … 400.
    """
    whole = isinstance(step, int) and not isinstance(step, bool)
    if not whole or not 0 <= step <= STEPS or step % EVERY:
        raise bad_input(
            "step",
            f"is {step!r}",
            f"one of 0, {EVERY}, {2 * EVERY}, … {STEPS}",
            f"try {STEPS}",
        )
