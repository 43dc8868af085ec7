from .cache import features_dir, features_key, image_features
from .contents import content_digest, content_digests
from .inputs import ImageInputs, with_index
from .shards import FeatureShards, FeatureTable

__all__ = [
    "FeatureShards",
    "FeatureTable",
    "ImageInputs",
    "content_digest",
    "content_digests",
    "features_dir",
    "features_key",
    "image_features",
    "with_index",
]
