"""Builders of cohort tables from the folders in which public data sets are published."""
