"""Runs plans: turns their rows into bytes in memory."""
