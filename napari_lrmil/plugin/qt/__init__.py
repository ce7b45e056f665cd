"""Qt building blocks without domain: worker thread, signals, docks, sections."""
