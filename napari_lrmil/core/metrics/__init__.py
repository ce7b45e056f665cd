"""Measures of agreement between two attention maps."""
