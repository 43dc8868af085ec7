from .inspect import inspect_data, local_tokenizer, write_contact_sheet
from .result import Finding, Inspection

__all__ = [
    "Finding",
    "Inspection",
    "inspect_data",
    "local_tokenizer",
    "write_contact_sheet",
]
