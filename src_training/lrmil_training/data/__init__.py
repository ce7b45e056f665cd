"""Cohort table, splits, patch features, teacher targets, bags."""
