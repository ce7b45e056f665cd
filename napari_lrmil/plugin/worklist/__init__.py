"""The Worklist dock: a list of slides to go through, with stored answers and the verdicts of a reviewer."""
