"""Models born on the meta device: their memory and their buffers."""
