"""Ways to run every institution of a simulation: in this process, or on Ray."""
