"""What this rank holds of a tensor, and what ranks agree on."""
