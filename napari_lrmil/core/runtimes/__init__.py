"""Runtimes of the encoder: torch, OpenVINO, and the check that they agree."""
