"""Define the exercises of the lessons about drift, monitoring, and the life of a project."""
