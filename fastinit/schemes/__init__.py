"""From a shape and its fans to a distribution."""
