"""Descriptors of atomic environments: one protocol (``base``), SOAP as dscribe defines it (``soap``)."""
