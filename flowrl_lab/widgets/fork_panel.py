"""Fork a run: go on with a trained policy under another algorithm."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import ClassVar

import traitlets

from flowrl_lab._validation import bad_input, check_choice, check_count
from flowrl_lab.plots.figures import svg_image
from flowrl_lab.plots.panels import (
    ALWAYS_LOG,
    History,
    Page,
    build_page,
    check_metrics,
    describe_page,
    tabulate_page,
)
from flowrl_lab.plots.placement import Placement, place_page
from flowrl_lab.plots.static import draw_svg
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.presets import VARIANTS
from flowrl_lab.training.run import Run
from flowrl_lab.types import StepRecord
from flowrl_lab.widgets._base import FOLDER, Explorer

__all__ = ["ForkPanel"]

METRICS = ("effective_answers", "kl_policy_target", "kl_target_policy")
REDRAW_SECONDS = 0.3


class ForkPanel(Explorer):
    """Continues finished runs under another algorithm and overlays the metrics.

    ``panel.fork("grpo", "flowrl", steps=100)`` needs no browser; shown in a
    notebook, the panel has two menus, an entry for the steps and a button that does
    the same between cells.  A fork keeps the parent's weights and settings, except
    what its variant says; optimiser, learned log Z and critic start anew
    (``Run.fork``).  It can be forked again.  When the cell runs again, a panel of the
    same runs still has the forks of the last one.

    Args:
        runs: a trained ``Run`` or several, with different names.
        variants: what to continue as: keys of ``presets.VARIANTS``, or name ->
            changed settings.  ``kl_reinforce`` gets the penalty 1/β.
        steps: training steps of a fork, unless told otherwise.
        metrics: of the curves; fields of ``StepRecord`` or ``ExactReport``.  The
            effective number counts right answers: near a peak, on a landscape.
        title: headline.

    Attributes:
        runs: name -> ``Run``: the parents, then each fork as ``"parent → variant"``.
        records: all records of these on one clock: a fork's steps count on from
            its parent's.  ``solution_map`` and ``LivePlot`` take them.

    Raises:
        ValueError: no run, one that is not trained, two of one name, an unknown
            variant or metric, or steps below 1.
    """

    _esm = FOLDER / "fork_panel.js"
    _names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _variant_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _picture = traitlets.Unicode().tag(sync=True)
    _status = traitlets.Unicode("").tag(sync=True)
    steps = traitlets.Int(100).tag(sync=True)
    # Forks of the last panel: the given runs -> runs, starts and records.
    _kept: ClassVar[dict[tuple[int, ...], tuple[dict, dict, list]]] = {}

    def __init__(
        self,
        runs: Run | Iterable[Run],
        variants: Sequence[str] | Mapping[str, Mapping] = (
            *("flowrl", "kl_reinforce", "grpo"),
        ),
        steps: int = 100,
        *,
        metrics: Sequence[str] = METRICS,
        title: str = "Runs and their forks",
    ) -> None:
        self.metrics = check_metrics(metrics)
        check_count("steps", steps)
        self.title = title
        self.variants = check_variants(variants)
        given = check_runs([runs] if isinstance(runs, Run) else list(runs))
        key = tuple(map(id, given.values()))  # kept runs live on, so an id is theirs
        if key not in self._kept:
            self._kept.clear()  # one panel's forks are enough to hold in memory
            self._kept[key] = (given, dict.fromkeys(given, 0), [])
        self.runs, self._starts, self.records = self._kept[key]
        if not self.records:
            for name, run in given.items():
                self.records += [self._on_clock(name, record) for record in run.records]
        super().__init__(
            _names=list(self.runs), _variant_names=list(self.variants), steps=steps
        )
        self.draw()
        self.on_msg(self._on_message)

    def fork(
        self,
        parent: str,
        variant: str,
        *,
        steps: int | None = None,
        seed: int | None = None,
    ) -> Run:
        """Train a fork now; it joins ``runs`` and ``records``.

        Args:
            parent: key of ``runs``.
            variant: key of ``variants``.
            steps: None for the panel's.
            seed: of sampling; None for the parent's.

        Returns:
            The new run.  After ■ Interrupt, what was trained is in ``runs``.

        Raises:
            ValueError: an unknown parent or variant, or steps below 1.
        """
        run = self.start(parent, variant, steps=steps, seed=seed)
        name, drawn = run.config.run_name, 0.0
        try:
            for _ in self.watch(run):
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    self._status = (
                        f"training {name}: step {run.step} of {run.config.steps}"
                    )
                    self.draw()
                    drawn = time.monotonic()
        finally:
            self._status = f"{name}: {run.step} of {run.config.steps} steps done"
            self.draw()
        return run

    def _on_message(self, _widget, content, _buffers) -> None:
        """The browser's button; what goes wrong is said beside it."""
        if content.get("ask") != "fork":
            return
        self._status = "training begins"
        try:
            self.fork(
                content.get("parent"),
                content.get("variant"),
                steps=content.get("steps"),
            )
        except KeyboardInterrupt:
            pass  # the status says how far it came
        except Exception as error:  # there is no cell for a traceback to go to
            self._status = f"could not run: {error}"

    def draw(self) -> None:
        """Send the present picture to the browser, where there is one."""
        if self.comm is not None:
            svg, said, _ = self.still()
            self._picture = svg_image(svg, said)
            self._names = list(self.runs)

    def start(
        self,
        parent: str,
        variant: str,
        *,
        steps: int | None = None,
        seed: int | None = None,
    ) -> Run:
        """The fork before its first step, already in ``runs``; see ``fork``."""
        check_choice("parent", parent, self.runs)
        check_choice("variant", variant, self.variants)
        steps = self.steps if steps is None else steps
        check_count("steps", steps)
        old = self.runs[parent]
        changes = {
            **self.settings(variant, old.config.reward_scale),
            "name": self._new_name(f"{parent} → {variant}"),
            "steps": steps,
            "seed": old.config.seed if seed is None else seed,
            "eval_every": min(old.config.eval_every, max(1, steps // 10)),
        }
        run = old.fork(**changes)
        name = run.config.run_name
        self.runs[name] = run
        self._starts[name] = self._starts[parent] + old.step
        return run

    def settings(self, variant: str, reward_scale: int | float) -> dict:
        """What a fork changes: all that makes another algorithm, none left over."""
        changes = self.variants[variant]
        if "algorithm" not in changes:
            return changes
        matched = {}
        if changes["algorithm"] == "kl_reinforce":
            matched["kl_coef"] = 1 / reward_scale
        return {**neutral_settings(), **matched, **changes}

    def watch(self, run: Run) -> Iterator[StepRecord]:
        """Train a run of this panel, yielding its records on the common clock."""
        for record in run:
            self.records.append(self._on_clock(run.config.run_name, record))
            yield self.records[-1]

    def _on_clock(self, name: str, record: StepRecord) -> StepRecord:
        start = self._starts[name]
        return replace(
            record, run=name, step=start + record.step, steps=start + record.steps
        )

    def _new_name(self, name: str) -> str:
        """The name, with a number if it is taken."""
        names = [name, *(f"{name} ({n})" for n in range(2, len(self.runs) + 2))]
        return next(free for free in names if free not in self.runs)

    def page(self) -> Page:
        """What the picture shows now: curves, and the last distributions if known."""
        history = History.of(self.records, self.metrics)
        return build_page(
            history,
            title=self.title,
            progress=" · ".join(self._fork_lines()),
            solution_map=bool(history.snapshots),
            log_y=ALWAYS_LOG,
        )

    def _fork_lines(self) -> list[str]:
        return [
            f"{name} from step {start} (dotted)"
            for name, start in self._starts.items()
            if start
        ]

    def still(self) -> tuple[str, str, str]:
        """The overlaid curves, with a mark where a fork left its parent."""
        page = self.page()
        placement = place_page(page)
        svg = draw_svg(page, placement)
        marks = draw_fork_marks(placement, sorted({*self._starts.values()} - {0}))
        said = "; ".join([*self._fork_lines(), describe_page(page)])
        return svg.removesuffix("</svg>") + marks + "</svg>", said, tabulate_page(page)


def neutral_settings() -> dict:
    """Everything that a variant may set, as it is where nothing is said.

    Without it a fork of ``kl_reinforce`` as ``grpo`` would keep the penalty.
    """
    touched = {key for changes in VARIANTS.values() for key in changes} | {"kl_coef"}
    return {f.name: f.default for f in fields(ExperimentConfig) if f.name in touched}


def check_variants(variants: Sequence[str] | Mapping[str, Mapping]) -> dict[str, dict]:
    """Every variant with the settings that it changes.

    Raises:
        ValueError: none, or an unknown one.
    """
    if isinstance(variants, str):
        raise bad_input(
            "variants",
            f"is the string {variants!r}",
            "a tuple of names",
            f"write variants=({variants!r},)",
        )
    if not variants:
        raise bad_input("variants", "is empty", "at least one", "try ('flowrl',)")
    if isinstance(variants, Mapping):
        return {name: dict(changes) for name, changes in variants.items()}
    for name in variants:
        check_choice("variants", name, VARIANTS)
    return {name: dict(VARIANTS[name]) for name in variants}


def check_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by name.

    Raises:
        ValueError: none, something else than a trained run, or two of one name.
    """
    wrong = [type(run).__name__ for run in runs if not isinstance(run, Run)]
    if wrong or not runs:
        raise bad_input(
            "runs",
            f"holds a {wrong[0]}" if wrong else "is empty",
            "a trained Run, or several",
            "train one first: run = Run(config); list(run)",
        )
    names = [run.config.run_name for run in runs]
    if len(set(names)) < len(names):
        raise bad_input(
            "runs",
            f"are named {names}",
            "different names",
            "give each config its own `name`",
        )
    untrained = [run.config.run_name for run in runs if not run.step]
    if untrained:
        raise bad_input(
            "runs",
            f"hold {untrained[0]!r}, which has not been trained",
            "at least one step",
            "iterate over it first: list(run)",
        )
    return dict(zip(names, runs, strict=True))


def draw_fork_marks(placement: Placement, steps: Sequence[int]) -> str:
    """A dotted line down every panel of curves where a fork left its parent."""
    parts = []
    for panel, box in placement.curves:
        for step in steps:
            x = box.left + panel.place_of(step) * box.width
            parts.append(
                f'<path class="fork" d="M{x:.1f} {box.top:.1f}v{box.height:.1f}" '
                f'stroke="#808080" stroke-dasharray="2 3"><title>fork at step {step}'
                "</title></path>"
            )
    return "".join(parts)
