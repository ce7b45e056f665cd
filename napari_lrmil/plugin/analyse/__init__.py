"""The Analyse dock."""
