"""The parts of the Analyse dock: thin widgets that show a session and tell what the user wants."""
