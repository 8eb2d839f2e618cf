"""From a budget to responses: which masks, by whom they are measured, journaled as they come."""
