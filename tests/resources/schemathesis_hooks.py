"""Tells schemathesis how a PDF begins: of random bytes, the API would see only their refusal."""

import schemathesis
from hypothesis import strategies

schemathesis.openapi.media_type("application/pdf", strategies.binary(max_size=2000).map(b"%PDF-1.7\n".__add__))
