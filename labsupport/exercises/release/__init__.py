"""Define the exercises of the lessons about a service and its release."""
