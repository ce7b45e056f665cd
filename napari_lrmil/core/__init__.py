"""The headless engine: slide -> tissue -> grid -> embeddings -> bag -> attention -> overlay. It knows no window."""
