"""A run on disk: responses, spectrum, circuit and record in one folder, and what identifies them. Runs nothing."""
