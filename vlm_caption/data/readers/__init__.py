"""Readers of corpora, one module for each family of formats. Each yields `Record`s and `Problem`s."""
