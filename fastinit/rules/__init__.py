"""What each parameter of a model is, which scheme it gets, and why."""
