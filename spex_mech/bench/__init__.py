"""Measurements: ablation and decoding against their floors and their neighbours, in one run, as ratios."""
