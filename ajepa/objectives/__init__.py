"""What an encoder is trained for: A-JEPA and other methods, one file each, on the same encoder, masks and steps."""
