"""Beside pyproject.toml: the wheel carries the course, so that pip brings all of it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# What `flowrl_lab._files.course_root` finds in a clone, it finds here in a wheel.
COURSE = ("data", "docs", "notebooks", ".jupyter")
LEFT_BEHIND = ("__pycache__", ".ipynb_checkpoints", "flowrl_progress*", "instructor")


class BuildWithCourse(build_py):
    """The package's modules, and the course below ``flowrl_lab/_course``."""

    def run(self):
        super().run()
        if self.editable_mode:  # a clone has the course beside the package
            return
        target = Path(self.build_lib) / "flowrl_lab" / "_course"
        shutil.rmtree(target, ignore_errors=True)
        ignore = shutil.ignore_patterns(*LEFT_BEHIND)
        for name in COURSE:
            shutil.copytree(name, target / name, ignore=ignore)


setup(cmdclass={"build_py": BuildWithCourse})
