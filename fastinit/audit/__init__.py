"""Reads what a model holds, and never writes."""
