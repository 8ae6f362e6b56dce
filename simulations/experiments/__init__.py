"""What is run on a scenario: a training, a comparison, a budget, a wiretap."""
