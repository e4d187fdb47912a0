"""The commands of ``python -m flowrl_lab``: one module each.

A module has ``add_parser(commands)``, which adds its options and names the function
that does the work.  Imports wait until that function runs, so ``--help`` answers at
once.
"""

from __future__ import annotations

__all__ = ["BAD_INPUT", "COMMANDS", "DONE", "FAILED", "INTERRUPTED"]

# name -> module of this package, in the order in which help lists them
COMMANDS: dict[str, str] = {
    "train": "train",
    "compare": "compare",
    "study": "study",
    "evaluate": "evaluate",
    "doctor": "doctor",
    "notebooks": "notebooks",
    "pretrain": "pretrain",
    "collect": "recorded_runs",
    "recorded": "recorded_runs",
    "explorer-data": "explorer_data",
    "report": "report",
    "record": "record",
    "gather-replay": "record",
    "fetch-model": "fetch_model",
    "export-adapter": "export_adapter",
    "colab": "colab",
    "book": "book",
    "export": "export",
    "assign": "assign",
}
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
