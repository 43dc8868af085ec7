"""Scores captions: `evaluate.evaluate` for a checkpoint, `evaluate.evaluate_files` for captions in files."""
