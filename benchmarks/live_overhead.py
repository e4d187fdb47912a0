"""What the live plot costs, as a share of the training it shows.

    python benchmarks/live_overhead.py                     the tiny LM, 150 steps
    python benchmarks/live_overhead.py --task landscape --steps 400

Trains FlowRL and GRPO side by side in a real notebook kernel, first without a plot,
then with each back end, and prints the CPU time spent inside the plot's own calls
(opening, updates, closing) over the CPU time of the whole cell: unlike wall time, the
ratio does not depend on what else the machine does.  Importing plotly, once in a
session, is counted apart.  A plot opens and closes once, whatever it shows, so its
share of a run of a few seconds is larger.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

STEPS = {"make_number": 150, "landscape": 400}
CELL = """
import json, time
from contextlib import nullcontext
from flowrl_lab import preset
from flowrl_lab.training.run import race
from flowrl_lab.plots.live import LivePlot
from flowrl_lab.course.session import choose_threads

choose_threads()

def configs():
    return [
        preset("{task}", name, steps={steps}).replace(eval_every=10, eval_prompts=8)
        for name in ("flowrl", "grpo")
    ]

def timed(call, *values):
    began = time.process_time()
    result = call(*values)
    spent[0] += time.process_time() - began
    return result

for _ in race(*[c.replace(steps=5) for c in configs()]):
    pass  # first calls are slow everywhere
began = time.process_time()
import plotly.graph_objects as go
go.FigureWidget()
imported = time.process_time() - began
rows = [("import plotly", imported, imported, 0)]
for backend in (None, "static", "svg", "widget"):
    spent, began, drawn = [0.0], time.process_time(), 0
    if backend is None:
        for _ in race(*configs()):
            pass
    else:
        plot = LivePlot(("reward", "kl_policy_target"), solution_map=True,
                        backend=backend)
        draw = plot._canvas.draw
        def counted(*what):
            global drawn
            drawn += 1
            draw(*what)
        plot._canvas.draw = counted
        timed(plot.__enter__)
        for record in race(*configs()):
            timed(plot.update, record)
        timed(plot.__exit__, None, None, None)
    rows.append((backend or "no plot", time.process_time() - began, spent[0], drawn))
print("ROWS" + json.dumps(rows))
"""


def run_in_kernel(code: str) -> str:
    """Execute code in a fresh kernel and return what it printed.

    Raises:
        RuntimeError: if the code fails there.
    """
    from jupyter_client.manager import start_new_kernel

    printed: list[str] = []

    def listen(message: dict) -> None:
        content = message["content"]
        if message["msg_type"] == "stream":
            printed.append(content["text"])
        elif message["msg_type"] == "error":
            raise RuntimeError("\n".join(content["traceback"]))

    environment = {k: v for k, v in os.environ.items() if k != "FLOWRL_HEADLESS"}
    manager, client = start_new_kernel(env=environment)
    try:
        client.execute_interactive(code, timeout=600, output_hook=listen)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return "".join(printed)


def measure(task: str, steps: int) -> list[tuple[str, float, float, int]]:
    """For each back end: CPU seconds of the cell, those in the plot, drawings."""
    cell = CELL.replace("{steps}", str(steps)).replace("{task}", task)
    output = run_in_kernel(cell)
    line = next(text for text in output.splitlines() if text.startswith("ROWS"))
    return [tuple(row) for row in json.loads(line.removeprefix("ROWS"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=STEPS, default="make_number")
    parser.add_argument("--steps", type=int, help="updates of each run")
    arguments = parser.parse_args()
    print(f"{'':14}{'CPU s':>9}{'plot s':>9}{'share':>8}{'drawings':>10}")
    for name, wall, spent, drawn in measure(
        arguments.task, arguments.steps or STEPS[arguments.task]
    ):
        share = f"{100 * spent / wall:.1f}%"
        print(f"{name:14}{wall:9.2f}{spent:9.2f}{share:>8}{drawn:10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
