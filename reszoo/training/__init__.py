"""Training: recipes, the training loop, saved states, history and reports."""
