"""Lists of sounds as people hold them: one file a format, each gives the user's own columns and none knows ours."""
