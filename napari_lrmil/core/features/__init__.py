"""Features (embeddings) of patches: extraction, storage as bags, caches, devices."""
