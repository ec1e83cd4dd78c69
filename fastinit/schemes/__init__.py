"""Schemes: from the shape and the fans of a parameter to a distribution."""
