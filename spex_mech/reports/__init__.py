"""A run and its audit in words and exhibits, for the page that `circuit.report` renders."""
