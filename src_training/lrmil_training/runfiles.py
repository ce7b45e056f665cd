"""Names of what lies in a run folder, for those who only look: importing this loads nothing."""

FEATURES, CHECKPOINTS, LOGS, BUNDLE = "features", "checkpoints", "logs", "bundle"
METRICS, SLIDES, CONFIG, COHORT = "metrics.json", "slides.json", "config.yaml", "cohort.sha256"
CALL = "call.json"  # which table and which device, so that whoever opens the folder can go on with it
