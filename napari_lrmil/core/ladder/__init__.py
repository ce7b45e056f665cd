"""Resolution ladder: one slide read by models of several resolutions, and the cascade that climbs only where needed."""
