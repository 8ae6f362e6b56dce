"""What client, server and simulations share; pure, without Flower."""
