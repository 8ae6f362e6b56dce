"""What a person does at a site: set up, look, check, rotate keys, erase, sign a release."""
