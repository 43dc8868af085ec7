"""The captioner as transformers classes: config, processor, model, projectors, freezing and loss.

Full checkpoints carry these files, so they import nothing but each other and published packages.
"""

# First, because importing transformers completes the classes of this room (see registration.py). Were one of its files
# to import transformers first, it would be found half-imported.
import transformers as transformers
