"""The Z-lab: train by trajectory balance, and do to log Z what should not be done."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import traitlets

from flowrl_lab._validation import bad_input, check_choice
from flowrl_lab.plots.panels import (
    LinePanel,
    Page,
    RunStyle,
    Series,
    StatesPanel,
    count_alive,
    curve_range,
    describe_page,
    format_number,
)
from flowrl_lab.plots.placement import place_page
from flowrl_lab.plots.static import draw_svg
from flowrl_lab.widgets._base import Explorer, read_script, read_styles
from flowrl_lab.widgets.beta_explorer import check_reference, check_rewards, check_scale
from flowrl_lab.widgets.z_training import (
    MODES,
    SAMPLERS,
    STEPS,
    Settings,
    Trace,
    reading_weights,
    train,
)

__all__ = ["ZLab"]

BATCH_SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 0)
DRAWS, LAST_STEPS = 5, 30  # the spread is over this many seeds, and these steps
MOST_STATES = 300
RANGES = {
    "bias": (-10.0, 10.0),
    "learning_rate": (0.001, 1.0),
    "log_z_learning_rate": (0.001, 2.0),
    "seed": (0, 4000),
    "step": (0, STEPS),
}
CHOICES = {"mode": MODES, "sampler": SAMPLERS, "batch_size": BATCH_SIZES}
USED = RunStyle("#0072B2", "solid", "circle")
TRUTH = RunStyle("#808080", "dot", "square")
BOUND = RunStyle("#D55E00", "dash", "diamond")


class ZLab(Explorer):
    """A policy over a few states, trained before your eyes; log Z is in your hands.

    The browser trains: 300 steps of trajectory balance with Adam, again after every
    move of a control, and with five different draws for the spread.  It needs no
    kernel.  The settings come back as attributes, and a ``ZLab`` of the same rewards
    that is made without settings starts where the last one was moved to.

    Source: arXiv 2509.15207 §3; the loss is Eq. 6 without length normalisation and
    importance weight.

    Args:
        rewards: r(x), one number for each of 2 to 300 states.
        reference: π_ref(x), positive, summing to 1, where the policy starts; None
            for the uniform one.
        reward_scale: β, above 0.
        settings: any of ``mode`` ("learned", "attached", "batch", "frozen",
            "dropped"), ``bias`` (nats, −10 to 10), ``learning_rate``,
            ``log_z_learning_rate``, ``batch_size`` (2, 4, … 256; 0 is exact),
            ``sampler`` ("policy", "reference"), ``seed``, and ``step``, the one that
            is shown; :class:`flowrl_lab.widgets.z_training.Settings` explains them.

    Raises:
        ValueError: for rewards or a reference that are none, or a setting that is
            unknown or out of range.
    """

    _esm = read_script("z_lab.js")
    _css = read_styles("z_lab.css")
    _scores = traitlets.Bytes().tag(sync=True)
    _log_reference = traitlets.Bytes().tag(sync=True)
    _reads = traitlets.Bytes().tag(sync=True)
    _limits = traitlets.Dict().tag(sync=True)
    mode = traitlets.Unicode("learned").tag(sync=True)
    bias = traitlets.Float(0.0).tag(sync=True)
    learning_rate = traitlets.Float(0.05).tag(sync=True)
    log_z_learning_rate = traitlets.Float(0.2).tag(sync=True)
    batch_size = traitlets.Int(16).tag(sync=True)
    sampler = traitlets.Unicode("policy").tag(sync=True)
    seed = traitlets.Int(0).tag(sync=True)
    step = traitlets.Int(STEPS).tag(sync=True)

    _left: ClassVar[dict[bytes, dict]] = {}

    def __init__(
        self, rewards, reference=None, *, reward_scale: int | float, **settings
    ) -> None:
        self.rewards = check_rewards(rewards)
        if not 2 <= len(self.rewards) <= MOST_STATES:
            raise bad_input(
                "rewards",
                f"has {len(self.rewards)} states",
                f"2 to {MOST_STATES}",
                "take a smaller landscape: the browser trains on it at every move",
            )
        self.reference = check_reference(reference, len(self.rewards))
        self.scores = check_scale(reward_scale) * self.rewards + np.log(self.reference)
        for name in settings:
            check_choice("setting", name, (*CHOICES, *RANGES))
        self._landscape = self.scores.tobytes() + self.reference.tobytes()
        super().__init__(
            _scores=self.scores.tobytes(),
            _log_reference=np.log(self.reference).tobytes(),
            _reads=reading_weights(len(self.scores)).tobytes(),
            _limits={
                "steps": STEPS,
                "draws": DRAWS,
                "last": LAST_STEPS,
                "batch_sizes": list(BATCH_SIZES),
                **{name: list(ends) for name, ends in RANGES.items()},
            },
            **(settings or self._left.get(self._landscape, {})),
        )
        # What was moved is kept, not what a program asked for.
        self.observe(self._remember, [*CHOICES, *RANGES])

    @traitlets.validate(*CHOICES)
    def _check_choice(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        if name == "batch_size" and value not in BATCH_SIZES:
            raise bad_input(
                name,
                f"is {value}",
                "2, 4, 8, … 256, or 0",
                "choose a power of two; 0 stands for exact means",
            )
        if name != "batch_size":
            check_choice(name, value, CHOICES[name])
        return value

    @traitlets.validate(*RANGES)
    def _check_range(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        low, high = RANGES[name]
        if not low <= value <= high:
            raise bad_input(
                name, f"is {value}", f"{low} to {high}", "choose a number in that range"
            )
        return value

    def _remember(self, _change=None) -> None:
        names = (*CHOICES, *RANGES)
        self._left[self._landscape] = {name: getattr(self, name) for name in names}

    def settings(self) -> Settings:
        """The settings as they stand now."""
        names = [field.name for field in dataclasses.fields(Settings)]
        return Settings(**{name: getattr(self, name) for name in names})

    def trace(self) -> Trace:
        """The training that is shown, computed here instead of in the browser."""
        return train(self.scores, np.log(self.reference), self.settings())

    def final_kl(self) -> np.ndarray:
        """KL(π ‖ p*) at the end (mean of the last 30 steps), for five draws."""
        ends = []
        for draw in range(DRAWS):
            settings = dataclasses.replace(self.settings(), seed=self.seed + draw)
            trace = train(self.scores, np.log(self.reference), settings)
            ends.append(trace.kl[-LAST_STEPS:].mean())
        return np.array(ends)

    def numbers(self) -> dict[str, float]:
        """What the browser writes under the picture, at the shown step, nats."""
        trace, finals = self.trace(), self.final_kl()
        return {
            "KL(π‖p*)": trace.kl[self.step],
            "log Z": trace.log_z[self.step],
            "true log Z": trace.exact_log_z,
            "true log Z − KL": trace.best_log_z[self.step],
            "mean residual": trace.mean_residual[self.step],
            "rms residual": trace.rms_residual[self.step],
            "KL at the end": finals.mean(),
            "±": finals.std(ddof=1),
        }

    def still(self) -> tuple[str, str, str]:
        """The picture of the shown step."""
        trace = self.trace()
        log_z = {
            "in the residual": (USED, trace.log_z),
            "true": (TRUTH, np.full(STEPS + 1, trace.exact_log_z)),
            "true − KL": (BOUND, trace.best_log_z),
        }
        lines = (
            _line_panel("log Z", log_z),
            _line_panel("KL(π‖p*)", {"KL": (USED, trace.kl)}, log_y=True),
            _line_panel("rms residual", {"rms": (USED, trace.rms_residual)}),
        )
        legend = tuple((s.run, s.style) for s in lines[0].series)
        title = f"Z-lab: log Z {self.mode}, {self._batch_words()}"
        page = Page(
            title, f"step {self.step}", legend, lines, (self._policy(trace),), ""
        )
        table = [title, *(f"{n} {format_number(v)}" for n, v in self.numbers().items())]
        return draw_svg(page, place_page(page)), describe_page(page), "\n".join(table)

    def _batch_words(self) -> str:
        size = f"{self.batch_size} samples" if self.batch_size else "exact means"
        return f"{size} of the {self.sampler}"

    def _policy(self, trace: Trace) -> StatesPanel:
        probs = np.exp(trace.log_probs[self.step])
        target = np.exp(self.scores - trace.exact_log_z)
        return StatesPanel(
            title=f"{count_alive(probs):.1f} of {len(probs)} effective",
            run="policy",
            style=USED,
            states=np.arange(len(probs), dtype=float),
            probs=probs,
            target=target,
            y_max=1.6 * float(target.max()),
            note=f"KL {format_number(trace.kl[self.step])} · grey: target p*",
        )


def _line_panel(
    title: str, curves: dict[str, tuple[RunStyle, np.ndarray]], *, log_y: bool = False
) -> LinePanel:
    steps = np.arange(STEPS + 1, dtype=float)
    heights = np.concatenate([values for _, values in curves.values()])
    return LinePanel(
        title + (" (log axis)" if log_y else ""),
        title,
        log_y,
        tuple(Series(run, style, steps, y) for run, (style, y) in curves.items()),
        (0.0, float(STEPS)),
        curve_range(heights, log_y),
    )
