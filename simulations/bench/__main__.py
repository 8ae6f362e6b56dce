"""``python -m simulations.bench``."""

from simulations.bench.cli import main

main()
