"""The coordinator: rounds, server optimiser, checkpoints and the release."""
