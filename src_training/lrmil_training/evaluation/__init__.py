"""Evaluation: metrics with intervals, significance, attention files."""
