"""The boxes of a tensor that a rank holds, and agreement between ranks."""
