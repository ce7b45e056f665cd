"""The stages of a run: features, teacher, distillation, export."""
