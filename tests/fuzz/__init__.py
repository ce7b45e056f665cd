"""Campaign of mutated files and killed processes: every one is answered rightly or with one sentence."""
