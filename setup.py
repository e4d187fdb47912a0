"""Beside pyproject.toml: the wheel carries the course, so that pip brings all of it."""

import re
import shutil
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# What `flowrl_lab._files.course_root` finds in a clone, it finds here in a wheel.
COURSE = ("data", "docs", "notebooks", ".jupyter")
LEFT_BEHIND = ("__pycache__", ".ipynb_checkpoints", "flowrl_progress*", "instructor")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
SETTINGS = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = SETTINGS["tool"]["flowrl_lab"]["repository"]


class BuildWithCourse(build_py):
    """The package's modules, and the course below ``flowrl_lab/_course``."""

    def run(self):
        target = Path(self.build_lib) / "flowrl_lab"
        if not self.editable_mode:  # nothing of an earlier build stays in the wheel
            shutil.rmtree(target, ignore_errors=True)
        super().run()
        if self.editable_mode:  # a clone has the course beside the package
            return
        ignore = shutil.ignore_patterns(*LEFT_BEHIND)
        for name in COURSE:
            shutil.copytree(name, target / "_course" / name, ignore=ignore)


def describe(text, repository):
    """The README as a package index shows it: links lead to the repository.

    Without a repository they are words, and its pictures are left out.
    """

    def lead(match):
        mark, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        if not repository:
            return "" if mark else words
        page = f"https://github.com/{repository}/{'raw' if mark else 'blob'}/main"
        return f"{mark}[{words}]({page}/{target})"

    return LINK.sub(lead, text)


def addresses(repository):
    """Where the project lies, for the index and for ``pip show``."""
    home = f"https://github.com/{repository}"
    pages = {"Source": "", "Issues": "/issues", "Changelog": "/blob/main/CHANGELOG.md"}
    return {name: home + page for name, page in pages.items()} if repository else {}


if __name__ == "__main__":
    setup(
        cmdclass={"build_py": BuildWithCourse},
        long_description=describe(Path("README.md").read_text("utf-8"), REPOSITORY),
        long_description_content_type="text/markdown",
        project_urls=addresses(REPOSITORY),
    )
