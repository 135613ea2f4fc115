"""Define the exercises of the lessons about where a model runs: batch, edge, and how many machines."""
