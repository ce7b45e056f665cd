"""Worklist: slides to be read, with the results that `predict` left, and the verdicts of reviewers."""
