"""Draw a reward landscape, see its target at once, train two policies on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import traitlets

from flowrl_lab._validation import bad_input, check_choice
from flowrl_lab.plots.panels import (
    Page,
    RunStyle,
    StatesPanel,
    count_alive,
    describe_page,
    effective_text,
    format_number,
    run_styles,
    states_panel,
)
from flowrl_lab.plots.placement import place_page
from flowrl_lab.plots.static import DASHES, draw_svg
from flowrl_lab.tasks.landscape import Landscape, figure1_log_mixture
from flowrl_lab.training.presets import preset
from flowrl_lab.training.run import race
from flowrl_lab.types import StepRecord
from flowrl_lab.widgets._base import Explorer, read_script, read_styles
from flowrl_lab.widgets.beta_explorer import (
    SLIDER_RANGE,
    check_rewards,
    check_scale,
    tilt,
)

__all__ = ["DRAWINGS", "TargetDesigner", "make_drawing"]

DRAWINGS = ("figure1", "two_hills", "plateau", "needle", "flat")
MOST_STATES = 400
EVALUATIONS = 20  # how often a training run shows where it stands
# Colours that the usual two policies do not wear.
REWARD = RunStyle("#009E73", "solid", "circle")
TARGET = RunStyle("#808080", "solid", "circle")

# What was drawn under each key, for as long as the kernel lives.
_KEPT: dict[str, TargetDesigner] = {}


class TargetDesigner(Explorer):
    """A reward landscape to draw on, and ``p* ∝ exp(βr)`` as it is drawn.

    Drag over the upper picture, or choose a state with the left and right arrow
    keys and raise or lower it with up and down.  The browser computes p* and log Z;
    its button trains a reward maximiser and FlowRL on the drawing, in the kernel.
    The reference is uniform.

    Source: arXiv 2509.15207, Eq. 2 and 5, Figure 1.

    Args:
        rewards: r(x) for N states, or the name of a drawing: "figure1" (its target
            at β = 15 is the paper's mixture, floored at reward 0), "two_hills",
            "plateau", "needle", "flat".
        reward_scale: β, above 0.
        algorithms: what to train, keys of ``flowrl_lab.training.presets.VARIANTS``.
        steps: training steps for each.
        seed: of training.
        key: a name to keep the drawing under: a cell that is run again shows what
            was drawn, unless its ``rewards`` or ``reward_scale`` were edited.

    Attributes:
        reward_scale: β, where the slider stands.
        records: algorithm -> the last record of its run; empty before training.
        trained_on: (rewards, β) that the records belong to.

    Raises:
        ValueError: for fewer than 2 or more than 400 states, a reward that is not
            finite, β ≤ 0, an unknown drawing or algorithm.
    """

    _esm = read_script("target_designer.js")
    _css = read_styles("target_designer.css")
    _rewards = traitlets.List(traitlets.Float()).tag(sync=True)
    _range = traitlets.List(traitlets.Float()).tag(sync=True)
    _scales = traitlets.List(traitlets.Float()).tag(sync=True)
    _drawings = traitlets.Dict().tag(sync=True)
    _result = traitlets.Dict().tag(sync=True)
    _status = traitlets.Unicode().tag(sync=True)
    _busy = traitlets.Bool(False).tag(sync=True)
    _algorithms = traitlets.List(traitlets.Unicode()).tag(sync=True)
    reward_scale = traitlets.Float(15.0).tag(sync=True)

    def __init__(
        self,
        rewards: str | Sequence[int | float] | np.ndarray | torch.Tensor = "two_hills",
        *,
        reward_scale: int | float = 15.0,
        algorithms: Sequence[str] = ("grpo", "flowrl"),
        steps: int = 200,
        seed: int = 0,
        key: str | None = None,
    ) -> None:
        table = make_drawing(rewards) if isinstance(rewards, str) else rewards
        table = check_landscape(table)
        scale = check_scale(reward_scale)
        self._start = (table.tobytes(), scale)
        self.steps, self.seed = steps, seed
        self.records: dict[str, StepRecord] = {}
        self.trained_on: tuple[np.ndarray, float] | None = None
        names = check_algorithms(algorithms)
        super().__init__(
            _rewards=table.tolist(),
            _range=axis_range(table),
            _scales=[min(SLIDER_RANGE[0], scale), max(SLIDER_RANGE[1], scale)],
            _drawings={
                name: make_drawing(name, len(table)).round(4).tolist()
                for name in DRAWINGS
            },
            _algorithms=names,
            reward_scale=scale,
        )
        self._configs(steps, seed)  # refuses wrong settings before anybody waits
        self.on_msg(self._heed)
        if key is not None:
            self._resume(_KEPT.get(key))
            _KEPT[key] = self

    @property
    def rewards(self) -> np.ndarray:
        """What is drawn: r(x) [N], float64."""
        return np.array(self._rewards)

    @rewards.setter
    def rewards(self, values) -> None:
        table = check_landscape(values)
        low, high = axis_range(table)
        with self.hold_sync():
            self._range = [min(low, self._range[0]), max(high, self._range[1])]
            self._drawings = {
                name: make_drawing(name, len(table)).round(4).tolist()
                for name in DRAWINGS
            }
            self._rewards = table.tolist()

    @traitlets.validate("_rewards")
    def _check_rewards(self, proposal):
        try:
            return check_landscape(proposal["value"]).tolist()
        except ValueError as error:
            # the one error after which traitlets puts the old value back
            raise traitlets.TraitError(str(error)) from None

    @traitlets.validate("reward_scale")
    def _check_reward_scale(self, proposal):
        return check_scale(proposal["value"])

    def _resume(self, before: TargetDesigner | None) -> None:
        """Take over what was drawn and trained, if the cell says the same as then."""
        if before is None or before._start != self._start:
            return
        self.rewards = before.rewards
        self.reward_scale = before.reward_scale
        if before._algorithms == self._algorithms:
            self.records, self.trained_on = before.records, before.trained_on
            self._result = before._result

    def target(self) -> tuple[np.ndarray, float]:
        """``p*`` [N] and log Z (nats) of what is drawn, at the present β."""
        return tilt(-np.log(len(self.rewards)), self.reward_scale * self.rewards)

    def _configs(self, steps: int, seed: int) -> list:
        """One config for each algorithm, on the present drawing."""
        options = {"rewards": self.rewards.tolist(), "reward_scale": self.reward_scale}
        return [
            preset(
                "landscape",
                name,
                name=name,
                steps=steps,
                seed=seed,
                eval_every=max(1, steps // EVALUATIONS),
                reward_scale=self.reward_scale,
                task_options=options,
                # the penalty whose optimum is the same target
                **(
                    {"kl_coef": 1 / self.reward_scale} if name == "kl_reinforce" else {}
                ),
            )
            for name in self._algorithms
        ]

    def train(
        self, steps: int | None = None, *, seed: int | None = None
    ) -> dict[str, StepRecord]:
        """Train each algorithm on the drawing; ■ Interrupt keeps what there is.

        Args:
            steps: training steps; None takes those of the constructor.
            seed: likewise.

        Returns:
            algorithm -> its last evaluated record; ``.exact`` holds the distances
            to p*, ``.snapshot.probs`` the policy.

        Raises:
            ValueError: for steps or a seed that no run can have.
        """
        configs = self._configs(
            self.steps if steps is None else steps, self.seed if seed is None else seed
        )
        self.records = {}
        self.trained_on = self.rewards, self.reward_scale
        groups = Landscape(rewards=self._rewards).groups
        modes = int(groups.max()) + 1
        self._busy, self._status = True, "training …"
        try:
            for record in race(*configs):
                if record.exact is not None:
                    self.records[record.run] = record
                    if len(self.records) == len(configs):
                        self._show(modes)
            self._status = f"trained, {record.steps} steps each"
        except KeyboardInterrupt:
            self._status = "interrupted: this is how far it came"
        finally:
            self._busy = False
        return dict(self.records)

    def _show(self, modes: int) -> None:
        """Send what the policies are now to the browser."""
        rewards, scale = self.trained_on
        first = next(iter(self.records.values()))
        with self.hold_sync():
            self._status = f"training: step {first.step} of {first.steps}"
            self._result = {
                "rewards": rewards.tolist(),
                "reward_scale": scale,
                "runs": [
                    {
                        "name": name,
                        "color": style.color,
                        "dash": DASHES[style.dash],
                        "glyph": style.glyph,
                        "probs": self.records[name].snapshot.probs.tolist(),
                        "facts": tell(self.records[name], modes),
                    }
                    for name, style in self._styles().items()
                ],
            }

    def _styles(self) -> dict[str, RunStyle]:
        return run_styles([(r.run, r.algorithm) for r in self.records.values()])

    def _heed(self, _widget, content: dict, _buffers) -> None:
        """The browser's button, with what is drawn there."""
        if content.get("kind") != "train":
            return
        try:
            self.rewards = content["rewards"]
            self.reward_scale = content["reward_scale"]
            self.train()
        except (ValueError, FloatingPointError) as error:
            self._status = f"could not train: {error}"

    def still(self) -> tuple[str, str, str]:
        """The drawing, and p* or the policies trained on it."""
        rewards, scale = self.rewards, self.reward_scale
        probs, log_z = self.target()
        panels = [reward_panel(rewards)]
        lines = [
            f"β = {format_number(scale)}, log Z {format_number(log_z)} nats, effective "
            f"states of p* {format_number(count_alive(probs))} of {len(probs)}"
        ]
        if self._result and not self.outdated:
            panels += [
                states_panel(name, style, self.records[name].snapshot, "target p*")
                for name, style in self._styles().items()
            ]
            lines += [
                f"{run['name']}: " + ", ".join(f"{k} {v}" for k, v in run["facts"])
                for run in self._result["runs"]
            ]
        else:
            panels.append(target_panel(probs, scale))
        if np.ptp(rewards) == 0:
            lines.append("flat: every reward is the same, so p* is the reference")
        title = f"Drawn rewards and their target at β = {format_number(scale)}"
        page = Page(title, lines[0], (), (), tuple(panels), "")
        return draw_svg(page, place_page(page)), describe_page(page), "\n".join(lines)

    @property
    def outdated(self) -> bool:
        """Whether the drawing or β changed since training (or nothing was trained)."""
        if self.trained_on is None:
            return True
        rewards, scale = self.trained_on
        return scale != self.reward_scale or not np.array_equal(rewards, self.rewards)


def tell(record: StepRecord, modes: int) -> list[list[str]]:
    """A trained policy in words: [what, how much]."""
    exact, snapshot = record.exact, record.snapshot
    top = int(snapshot.probs.argmax())
    return [
        ["KL(π‖p*)", f"{format_number(exact.kl_policy_target)} nats"],
        ["KL(p*‖π)", f"{format_number(exact.kl_target_policy)} nats"],
        ["modes alive", f"{round(exact.modes_covered * modes)} of {modes}"],
        ["effective states", format_number(count_alive(snapshot.probs))],
        ["mean reward", format_number(float(snapshot.probs @ snapshot.rewards))],
        ["largest π", f"{format_number(snapshot.probs[top])} at state {top}"],
    ]


def reward_panel(rewards: np.ndarray) -> StatesPanel:
    """The drawing, from 0 or from its lowest reward."""
    base = min(0.0, float(rewards.min()))
    high = max(float(rewards.max()) - base, 1e-9)
    best = int(rewards.argmax())
    return StatesPanel(
        title=f"best {format_number(float(rewards.max()))} at state {best}",
        run="reward" if base == 0 else f"reward − ({format_number(base)})",
        style=REWARD,
        states=np.arange(len(rewards), dtype=float),
        probs=rewards - base,
        target=np.zeros(len(rewards)),
        y_max=1.05 * high,
        note=f"{len(rewards)} states",
    )


def target_panel(probs: np.ndarray, scale: float) -> StatesPanel:
    """p* before anything is trained on it."""
    count = len(probs)
    return StatesPanel(
        title=effective_text(probs),
        run="p*",
        style=TARGET,
        states=np.arange(count, dtype=float),
        probs=probs,
        target=np.full(count, 1 / count),
        y_max=1.05 * float(probs.max()),
        note=f"β = {format_number(scale)} · grey: π_ref",
    )


def axis_range(rewards: np.ndarray) -> list[float]:
    """Rewards that can be drawn: 0 … 1, and further where some lie outside."""
    return [min(0.0, float(rewards.min())), max(1.0, float(rewards.max()))]


def make_drawing(name: str, num_states: int = 100) -> np.ndarray:
    """The rewards of a named drawing, between 0 and 1.

    Args:
        name: one of ``DRAWINGS``.
        num_states: N; the drawings are made for 100 and stretched otherwise.

    Returns:
        float64 [N].

    Raises:
        ValueError: for an unknown name.
    """
    check_choice("rewards", name, DRAWINGS)
    x = np.linspace(0, 99, num_states)
    if name == "figure1":
        log_p = figure1_log_mixture().numpy()
        return np.interp(
            x, np.arange(100), np.maximum(0, 1 + (log_p - log_p.max()) / 15)
        )
    if name == "two_hills":  # the lower one is wider: which holds more of p*?
        return np.maximum(hill(x, 30, 5), 0.93 * hill(x, 70, 9))
    if name == "plateau":
        return ((x >= 30) & (x < 70)).astype(float)
    if name == "needle":
        high = (np.arange(num_states) == round(0.75 * (num_states - 1))).astype(float)
        return np.maximum(0.8 * hill(x, 30, 8), high)
    return np.full(num_states, 0.5)


def hill(x: np.ndarray, peak: int, width: int) -> np.ndarray:
    """A bump of height 1."""
    return np.exp(-((x - peak) ** 2) / (2 * width**2))


def check_landscape(rewards) -> np.ndarray:
    """Rewards as float64 [N], 2 ≤ N ≤ 400.

    Raises:
        ValueError: for what cannot be drawn.
    """
    if isinstance(rewards, torch.Tensor):
        rewards = rewards.detach().cpu().numpy()
    try:
        values = check_rewards(rewards)
    except TypeError as error:
        raise not_numbers(rewards, error) from None
    except ValueError as error:
        if str(error).startswith("`rewards`"):
            raise
        raise not_numbers(rewards, error) from None
    if not 2 <= len(values) <= MOST_STATES:
        raise bad_input(
            "rewards",
            f"has {len(values)} state(s)",
            f"2 to {MOST_STATES}, so that they can be told apart",
            "give one reward for each state",
        )
    return values


def not_numbers(rewards, error: Exception) -> ValueError:
    """The message for rewards that numpy cannot read."""
    return bad_input(
        "rewards",
        f"is a {type(rewards).__name__} ({error})",
        f"numbers, or one of {list(DRAWINGS)}",
        "pass a flat list of rewards",
    )


def check_algorithms(algorithms: Sequence[str]) -> list[str]:
    """One to four different names; ``preset`` knows whether they exist.

    Raises:
        ValueError: otherwise.
    """
    names = [algorithms] if isinstance(algorithms, str) else list(algorithms)
    if not 1 <= len(names) <= 4 or len(set(names)) < len(names):
        raise bad_input(
            "algorithms",
            f"is {names}",
            "one to four different names",
            'write algorithms=("grpo", "flowrl")',
        )
    return names
