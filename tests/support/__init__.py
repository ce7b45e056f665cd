"""What tests share besides fixtures: slides and networks made up for them, and tasks that travel to other processes."""
