"""Models: gated-attention MIL and the bundle that a model is shared as."""
