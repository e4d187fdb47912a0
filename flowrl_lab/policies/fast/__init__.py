"""Optional compiled passes of the tiny language model: the same numbers, sooner."""
