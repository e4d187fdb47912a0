"""What runs inside the sandbox; sent there as text, see ``worker.py``."""
