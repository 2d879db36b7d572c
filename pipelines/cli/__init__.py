"""What every command shares at the terminal: options, errors, progress, the output it writes to."""
