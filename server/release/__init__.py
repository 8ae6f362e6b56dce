"""From a finished run to a folder to hand out."""
