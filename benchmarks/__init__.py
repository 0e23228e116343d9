"""What sockshare costs, as ratios to peers that are measured in the same run; each module runs by ``python -m``."""
