"""Rules: what a parameter is, which scheme it gets, and why."""
