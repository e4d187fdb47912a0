"""What a run costs: planner, presets for real models, several processes."""
