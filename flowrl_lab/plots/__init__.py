"""Live and finished plots."""
