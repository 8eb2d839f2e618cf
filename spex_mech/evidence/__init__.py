"""The evidence of an audit: trials by fresh forward passes, and what they said. Knows no command line and no page."""
