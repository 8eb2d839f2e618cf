"""From a question to responses: which masks, by whom they are measured, journaled as they come."""
