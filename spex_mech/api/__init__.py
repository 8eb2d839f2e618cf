"""The public verbs, a file each: they read what a user asks and call the passes in order. No mathematics."""
