"""Inference on one slide: prediction, quality checks, comparison with the teacher."""
