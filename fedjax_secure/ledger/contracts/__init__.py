"""The contracts, their compiled artefacts, and the Python side of their interface."""
