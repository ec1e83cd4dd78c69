"""From a plan's rows to bytes."""
