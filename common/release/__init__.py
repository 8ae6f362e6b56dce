"""A finished adapter to hand out: statement, folder, words, and the check that anybody can make."""
