"""Labelers, one file each; their rows stand in sail.labeling.LABELERS."""
