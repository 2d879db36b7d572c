"""Tables, pictures and pages that a command leaves behind."""
