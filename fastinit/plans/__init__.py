"""Plans: which values will be written where, and why, as plain data. Making or printing one touches no memory."""
