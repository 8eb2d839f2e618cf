"""The trials of an audit by fresh forward passes, a file each, and what they said. Knows no terminal and no page."""
