"""Files that strangers may have written: JSON, records, locks, text that is safe to print. Knows no model."""
