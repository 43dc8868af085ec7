"""transformers' own tests of models, configurations, pipelines and processors, on captioners of several towers."""

import pytest
from upstream.sdist import SdistError

try:
    from upstream.captioner import FLAGS, CaptionerProcessorTests, CaptionerTests, captioner
    from upstream.suites import suite
except SdistError as error:
    pytest.skip(str(error), allow_module_level=True)

# Every vision family with one language model, and two with another: all eight pairs take a third longer, and each of
# the tests looks at one tower or at what all pairs have in common.
PAIRS = [(vision, "gpt2") for vision in ("clip", "vit", "dinov2", "timm")] + [("clip", "llama"), ("dinov2", "llama")]

for _vision, _language in PAIRS:
    _name = f"Test{_vision.title()}{_language.title()}"
    globals()[_name] = suite(_name, CaptionerTests, captioner(_vision, _language), **FLAGS.get(_vision, {}))

TestProcessor = suite("TestProcessor", CaptionerProcessorTests, captioner("clip", "gpt2"))
