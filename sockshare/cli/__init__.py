"""The commands of ``sockshare``; `main` decides which, and imports no more than it needs."""
