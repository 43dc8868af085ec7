from .inspect import Finding, Inspection, inspect_data, local_tokenizer, write_contact_sheet

__all__ = [
    "Finding",
    "Inspection",
    "inspect_data",
    "local_tokenizer",
    "write_contact_sheet",
]
