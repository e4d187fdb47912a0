"""Training: one step in view, the loop around it, and what keeps it alive."""
