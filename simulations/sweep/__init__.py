"""How much utility privacy costs: one scenario trained under many settings, as one table and one picture."""
