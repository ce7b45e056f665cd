"""Result files: writing, reading, resuming, exporting, cohort tables."""
