"""Servers as they come, reloaded under load with what `auto` chooses by itself: ``python -m tests.servers``."""
