"""One run: led, kept in checkpoints, paused, resumed."""
