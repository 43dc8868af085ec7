"""Captions images and vectors: `captioner.Captioner`, files of captions, and the loss on captions."""
