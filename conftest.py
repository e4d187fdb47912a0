"""For every test, of tests/ and of the notebooks: hands off the learner's progress.

It lies above both folders so that `pytest notebooks/…` finds it too; the kernels
that run notebooks inherit the variable.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_folder = tempfile.TemporaryDirectory(prefix="flowrl-progress-")
os.environ["FLOWRL_PROGRESS"] = str(Path(_folder.name) / "progress.json")
