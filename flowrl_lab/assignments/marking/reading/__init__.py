"""The process that reads one submission; started by its path, see ``worker.py``."""
