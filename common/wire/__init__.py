"""What travels between coordinator and steward, and the link between shim and steward."""
