"""What touches Flower and the outside: SuperLink, public listener, nodes, runs."""
