"""The course in Colab and other hosted notebooks: one file to upload."""

from flowrl_lab.integrations.colab.export import export_notebook, git_badge

__all__ = ["export_notebook", "git_badge"]
