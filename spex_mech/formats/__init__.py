"""Circuits in the files and words of other tools, a file a format. Each says what it loses."""
