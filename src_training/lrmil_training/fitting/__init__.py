"""Fitting one stage: trainer, checkpoints, loggers, processes."""
