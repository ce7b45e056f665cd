"""The run folder: names of its files, lock and event log."""
