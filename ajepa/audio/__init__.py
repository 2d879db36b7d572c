"""Sound to log-mel: where clips come from, how they are decoded, and the front end."""
