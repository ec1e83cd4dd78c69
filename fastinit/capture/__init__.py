"""Other people's code, recorded instead of run: what it draws, computes and sets becomes distributions and tapes."""
