"""Files that hold many clips: what is in them, and how their sound is read in order."""
