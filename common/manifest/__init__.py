"""What a run is: settings, roster and terms that both sides work out and sign."""
