from .cache import cache_dir
from .console import ArgumentParser, loading, printable, progress, quiet_transformers, setup_logging
from .digests import checksum_file, digest_tensors
from .errors import (
    BackboneError,
    CheckpointError,
    ConfigError,
    DataError,
    ImageError,
    ImageFetchError,
    ImageNotFoundError,
    ImageTooLargeError,
    MissingPackageError,
    NotAnImageError,
    ScorerMissingError,
    TruncatedImageError,
    UnsupportedImageError,
)
from .extras import explain_missing, require
from .files import move_folder, open_regular, write_bytes, write_text, writing_files
from .hub_ids import is_hub_id
from .interrupts import Interrupted, StopSignals, ending_at_once, raise_if_stopped
from .outputs import Output, check_outputs
from .text import defuse_formula, preview, read_lines, read_text, readable
from .threads import count_cores, map_in_threads
from .untrusted import iterate_json, load_json, load_yaml, read_safetensors_header

__all__ = [
    "ArgumentParser",
    "BackboneError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ImageError",
    "ImageFetchError",
    "ImageNotFoundError",
    "ImageTooLargeError",
    "Interrupted",
    "MissingPackageError",
    "NotAnImageError",
    "Output",
    "ScorerMissingError",
    "StopSignals",
    "TruncatedImageError",
    "UnsupportedImageError",
    "cache_dir",
    "check_outputs",
    "checksum_file",
    "count_cores",
    "defuse_formula",
    "digest_tensors",
    "ending_at_once",
    "explain_missing",
    "is_hub_id",
    "iterate_json",
    "load_json",
    "load_yaml",
    "loading",
    "map_in_threads",
    "move_folder",
    "open_regular",
    "preview",
    "printable",
    "progress",
    "quiet_transformers",
    "raise_if_stopped",
    "read_lines",
    "read_safetensors_header",
    "read_text",
    "readable",
    "require",
    "setup_logging",
    "write_bytes",
    "write_text",
    "writing_files",
]
