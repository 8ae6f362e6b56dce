"""What answers the coordinator: admit, check, charge, train, mask; the one room that sends anything."""
