"""Readers and writers of the feature files of other programs, one module for each layout."""
