"""Measures Perdure against raw commits of the same device, in the same run: ``python -m bench``."""
