"""The operator's side: cards, the inventory, and knocking many hosts at once."""
