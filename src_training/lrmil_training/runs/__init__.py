"""The run folder: lock and event log."""
