"""Rules put together: files, presets, residual nets, muP."""
