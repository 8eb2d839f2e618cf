"""Backends, one file a library. Each says where the sites of a model are and runs it with edits there; nothing else."""
