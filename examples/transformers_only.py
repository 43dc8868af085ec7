"""Captions a photo where only transformers and Pillow are installed: python transformers_only.py CHECKPOINT PHOTO"""

import sys

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

checkpoint, photo = sys.argv[1:]
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=True)
inputs = processor(images=Image.open(photo), return_tensors="pt")
print(processor.decode(model.generate(**inputs)[0], skip_special_tokens=True))
