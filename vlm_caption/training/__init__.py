"""Trains a captioner: `train.train` for a run, `feature_caching.cache_features` for its features ahead of it."""
