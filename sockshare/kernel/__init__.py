"""The faces of the kernel, one a file."""
