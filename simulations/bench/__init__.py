"""Measurements on the machine at hand: ``python -m simulations.bench dp``."""
