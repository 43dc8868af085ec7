"""Model cards, and the facts about a checkpoint that they are rendered from."""
