"""The way into the vault: list, clean, judge, add; with a receipt."""
