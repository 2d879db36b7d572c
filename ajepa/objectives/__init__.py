"""What an encoder is trained for: A-JEPA and its rivals, one file each, on the same encoder, masks and steps."""
