"""Training: cohort -> features -> teacher -> stage 1 -> stage 2 -> evaluation -> bundle. It knows no window."""
