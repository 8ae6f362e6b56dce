"""Who takes part, and the coordinator's folder."""
